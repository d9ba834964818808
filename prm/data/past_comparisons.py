"""A user's own past comparisons, as text for a language model that answers or judges for this user."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from prm.data.comparison import Comparison, Message, Prompt, as_messages
from prm.data.splits import when

_BEFORE = "The person who asks has chosen between two answers before."
_AFTER = "Answer what they ask now as they would prefer it."


def past_by_user(log: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """Each user's comparisons, the newest last: by `time` if all of the user's have one, or else as in the log."""
    by_user: dict[str, list[Comparison]] = defaultdict(list)
    for c in log:
        by_user[c.user_id].append(c)
    return {user: _in_order(past) for user, past in by_user.items()}


def _in_order(past: list[Comparison]) -> list[Comparison]:
    kinds = {"" if c.time is None else "date" if isinstance(c.time, str) else "number" for c in past}
    return sorted(past, key=when) if len(kinds) == 1 and "" not in kinds else past


def without_leaks(past: Iterable[Comparison], prompt: Prompt, responses: Iterable[str]) -> list[Comparison]:
    """Those that do not show what the user thinks of these responses to the prompt.

    Left out are comparisons on the same prompt, later in the same conversation, or with one of the responses.
    """
    messages, hidden = as_messages(prompt), set(responses)
    return [
        c
        for c in past
        if as_messages(c.prompt)[: len(messages)] != messages and hidden.isdisjoint((c.chosen, c.rejected))
    ]


def texts_of(past: Sequence[Comparison], max_chars: int | None = None) -> list[str]:
    """Each comparison as text: the last message of its prompt, the preferred response and the other one.

    Args:
        max_chars: cut each of the three texts after so many characters.
    """
    return [tagged(f"earlier_choice_{i}", _text(c, max_chars)) for i, c in enumerate(past, start=1)]


def _text(c: Comparison, max_chars: int | None) -> str:
    prompt, better, worse = (_cut(t, max_chars) for t in (as_messages(c.prompt)[-1].content, c.chosen, c.rejected))
    if c.is_tie:
        return f"They were asked to choose on: {prompt}\n\nThey liked both alike: {better}\n\nAnd: {worse}"
    return f"They were asked to choose on: {prompt}\n\nThey preferred: {better}\n\nTo: {worse}"


def _cut(text: str, max_chars: int | None) -> str:
    return text if max_chars is None or len(text) <= max_chars else text[:max_chars] + " ..."


def tagged(tag: str, text: str) -> str:
    """The text between tags on lines of their own, which it cannot close."""
    inside = re.sub(rf"<(\s*/\s*{tag}\b)", r"&lt;\1", text, flags=re.IGNORECASE)
    return f"<{tag}>\n{inside}\n</{tag}>"


def with_past(prompt: Prompt, past: Sequence[Comparison], most: int, fits: Callable[[Prompt], bool]) -> Prompt:
    """The prompt, with as many of a user's past comparisons before its last message as fit; itself if none does.

    The newest is taken first; one that no longer fits is passed over, and a tie shows no preference. In the text the
    newest is the last. `without_leaks` must have been applied.

    Args:
        past: the newest last, as of `past_by_user`.
        most: maximum number of comparisons.
        fits: whether the model's window has room for this prompt and a response.
    """
    shown: list[Comparison] = []
    result = prompt
    for c in reversed([c for c in past if not c.is_tie]):
        if len(shown) == most:
            break
        longer = put_before(prompt, "\n\n".join([_BEFORE, *texts_of([c, *shown]), _AFTER]))
        if fits(longer):
            shown, result = [c, *shown], longer
    return result


def put_before(prompt: Prompt, text: str) -> Prompt:
    """The prompt with a text before its last message, in the same turn."""
    *earlier, last = as_messages(prompt)
    content = f"{text}\n\n{last.content}"
    return (*earlier, Message(last.role, content)) if earlier else content
