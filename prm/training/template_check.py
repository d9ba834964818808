"""Find conversations that a reward model's own chat template tokenises differently from our encoder."""

import copy
from collections.abc import Mapping
from types import MappingProxyType

from prm.data.chat_template import ChatTemplate
from prm.data.comparison import Message
from prm.data.encoding import TextEncoder
from prm.errors import DataError

_LONG = 1 << 20  # tokens: no probe is truncated


def _talk(response: str, *before: Message) -> list[Message]:
    return [*(before or (Message("user", "Why?"),)), Message("assistant", response)]


# probes by what templates may change: they trim, normalise and cut responses, and add to them
TALKS: Mapping[str, list[Message]] = MappingProxyType(
    {
        "a plain response": _talk("Because."),
        "a response with spaces at its ends": _talk("  Because. "),
        "a response with line ends at its ends": _talk("\nBecause.\n"),
        "a response with an empty line at its end": _talk("Because.\n\n"),
        "a response of two paragraphs": _talk("One.\n\nTwo.\n  Three."),
        "a response with tabs and double spaces": _talk("One.\t Two.  Three."),
        "a response with accents": _talk("Cafe\u0301 \u212b \u00bd."),  # not in Unicode's composed form
        "a response in tags": _talk("<think>\nWell.\n</think>\n\nBecause."),
        "a system message": _talk("Because.", Message("system", "Be brief."), Message("user", "Why?")),
        "several turns": _talk(
            "Because.", Message("user", "Hi."), Message("assistant", " Hello. \n"), Message("user", " Why?\n")
        ),
    }
)


def unlike_own_pipeline(encoder: TextEncoder, padding: int | None) -> list[str]:
    """Names of the probes that the tokenizer's chat template turns into other tokens than the encoder.

    Conversations that the template refuses are left out: its own pipeline cannot read them either. Empty if there is
    no template.

    Args:
        padding: the model's padding id; it is ignored at the end of a text.
    """
    if encoder.template is None:
        return []
    untruncated = copy.copy(encoder)
    untruncated.max_length = _LONG
    return [name for name, talk in TALKS.items() if _differs(untruncated, encoder.template, talk, padding)]


def _differs(encoder: TextEncoder, template: ChatTemplate, talk: list[Message], padding: int | None) -> bool:
    try:
        expected = encoder.ids(template(talk))
        encoded = encoder.encode(tuple(talk[:-1]), talk[-1].content).ids
    except DataError:
        return False
    while expected and expected[-1] == padding:
        expected.pop()
    return [i for i in encoded if i < encoder.vocab_size] != expected
