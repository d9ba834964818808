"""Leave out the system prompt that a chat template writes on its own, when a conversation has none."""

import copy
import json

from transformers import PreTrainedTokenizerBase

from prm.data.chat_template import ChatTemplate
from prm.data.comparison import Message
from prm.errors import PrmError

_MARKS = ("\u2063system\u2063", "\u2063first\u2063", "\u2063answer\u2063", "\u2063second\u2063")
_SYSTEM, _FIRST, _ANSWER, _SECOND = _MARKS
# one message, several, and those that begin with an answer, which are left when a long conversation is cut
_PROBES = (
    [Message("user", _FIRST)],
    [Message("user", _FIRST), Message("assistant", _ANSWER), Message("user", _SECOND)],
)


def default_system_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes above a conversation only if that has no system message; empty if nothing.

    SmolLM2's is 'You are a helpful AI assistant named SmolLM, trained by Hugging Face'. What is also written above a
    system message, such as Llama 3.1's date, does not count, nor does what `without_default_system_prompt` cannot leave
    out.
    """
    return _default_of(tokenizer) if without_default_system_prompt(tokenizer) is not tokenizer else ""


def without_default_system_prompt(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer whose chat template begins with the first message, or the tokenizer if it does already.

    The change is in the template's text, so that other programs that read the saved tokenizer apply it, too. Templates
    are left as they are if the place where a message begins cannot be found.
    """
    if not _default_of(tokenizer):
        return tokenizer
    original = str(tokenizer.get_chat_template())
    try:
        template = ChatTemplate(tokenizer)
        opening, user, assistant = _headers(tokenizer, template)
    except PrmError:
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = _wrapped(original, opening, user, assistant)
    return changed if user and _only_shorter(template, ChatTemplate(changed), opening, user) else tokenizer


def _default_of(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        return ""
    try:
        template = ChatTemplate(tokenizer)
        alone = template([Message("user", _FIRST)])
        before, found, after = template([Message("system", _SYSTEM), Message("user", _FIRST)]).partition(_SYSTEM)
    except PrmError:  # it refuses system messages, so that it writes none on its own, or everything
        return ""
    if not found or not (alone.startswith(before) and alone.endswith(after)):
        return ""
    return alone[len(before) : len(alone) - len(after)]


def _headers(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> tuple[str, str, str]:
    """(the beginning-of-text token if the template writes one, what opens a user's turn, what opens an answer)."""
    talk = template(_PROBES[1])
    user = talk.partition(_ANSWER)[2].partition(_SECOND)[0].removeprefix(template.ending())
    alone = _PROBES[0]
    assistant = template(alone, answer_follows=True).removeprefix(template(alone))
    bos = str(tokenizer.bos_token or "")
    # SmolLM2's is also what opens every turn
    opening = bos if bos and talk.startswith(bos) and not user.startswith(bos) else ""
    return opening, user, assistant


def _wrapped(original: str, opening: str, user: str, assistant: str) -> str:
    """The template with everything cut that comes before the header of the first message."""
    # a template's last line end is not written; signs inside the tags keep white space next to them
    whole = "{% set whole +%}" + original.removesuffix("\n") + "{%+ endset %}"
    headers = f"{{'user': {_quoted(user)}, 'assistant': {_quoted(assistant)}}}"
    return (
        f"{whole}{{% set header = {headers}[messages[0]['role']] %}}"
        "{% if header and header in whole and not tools %}"
        f"{{{{ {_quoted(opening)} + header + whole.split(header)[1:] | join(header) }}}}"
        "{% else %}{{ whole }}{% endif %}"
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _only_shorter(before: ChatTemplate, after: ChatTemplate, opening: str, user: str) -> bool:
    """Whether conversations lose their beginning and nothing else, and those with a system message nothing at all."""
    system = [Message("system", _SYSTEM)]
    try:
        return all(
            before(talk).endswith(after(talk).removeprefix(opening))
            and after(talk).startswith(opening + user + _FIRST)
            and before(system + talk) == after(system + talk)
            for talk in _PROBES
        )
    except PrmError:
        return False
