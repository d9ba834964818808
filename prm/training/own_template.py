"""Where a reward model with a chat template of its own would read a conversation otherwise than we do."""

import copy
from collections.abc import Mapping
from types import MappingProxyType

from prm.data.chat_template import ChatTemplate
from prm.data.comparison import Message
from prm.data.encoding import TextEncoder
from prm.errors import DataError

_LONG = 1 << 20  # tokens: no probe is ever cut


def _talk(answer: str, *before: Message) -> list[Message]:
    return [*(before or (Message("user", "Why?"),)), Message("assistant", answer)]


# conversations by what may befall them: templates trim, normalise and cut answers, and add to them
TALKS: Mapping[str, list[Message]] = MappingProxyType(
    {
        "a plain answer": _talk("Because."),
        "an answer with spaces at its ends": _talk("  Because. "),
        "an answer with line ends at its ends": _talk("\nBecause.\n"),
        "an answer with an empty line at its end": _talk("Because.\n\n"),
        "an answer of two paragraphs": _talk("One.\n\nTwo.\n  Three."),
        "an answer with tabs and double spaces": _talk("One.\t Two.  Three."),
        "an answer with accents": _talk("Cafe\u0301 \u212b \u00bd."),  # not in Unicode's composed form
        "an answer in tags": _talk("<think>\nWell.\n</think>\n\nBecause."),
        "a system message": _talk("Because.", Message("system", "Be brief."), Message("user", "Why?")),
        "several turns": _talk(
            "Because.", Message("user", "Hi."), Message("assistant", " Hello. \n"), Message("user", " Why?\n")
        ),
    }
)


def unlike_own_pipeline(encoder: TextEncoder, padding: int | None) -> list[str]:
    """What the tokenizer's chat template makes of a whole conversation otherwise than the encoder, in words.

    Conversations that the template refuses are left out: its own pipeline reads none either. Empty where there is no
    template.

    Args:
        padding: id that the model takes for padding, so that it reads none of it behind a text.
    """
    if encoder.template is None:
        return []
    ours = copy.copy(encoder)
    ours.max_length = _LONG
    return [name for name, talk in TALKS.items() if _differs(ours, encoder.template, talk, padding)]


def _differs(encoder: TextEncoder, template: ChatTemplate, talk: list[Message], padding: int | None) -> bool:
    try:
        expected = encoder.ids(template(talk))
        found = encoder.encode(tuple(talk[:-1]), talk[-1].content).ids
    except DataError:
        return False
    while expected and expected[-1] == padding:
        expected.pop()
    return [i for i in found if i < encoder.vocab_size] != expected
