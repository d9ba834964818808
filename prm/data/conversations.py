"""Prompts of one conversation: those that begin with one another. No torch here.

The second turn of a conversation holds the answer that was chosen in the first. Who holds out the one and learns from
the other has read the held-out answer.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from prm.data.comparison import Comparison, Prompt, as_messages, prompt_key

_USER, _ASSISTANT, _SYSTEM = "user", "assistant", "system"
_ROLES = dict.fromkeys(("human", "user", "prompter"), _USER) | {"system": _SYSTEM}
_ROLES |= dict.fromkeys(("assistant", "ai", "bot", "model", "gpt", "chatbot"), _ASSISTANT)
# "Human:", "### Assistant:", "[user]:", "<|user|>" where a line begins: a conversation that was written out as text
_HEADER = re.compile(
    rf"^[ \t]*(?:#+[ \t]*|[\[(]|<\|)?({'|'.join(_ROLES)})(?:\|>|[\])]?[ \t]*:)", re.IGNORECASE | re.MULTILINE
)


def first_prompts(comparisons: Sequence[Comparison]) -> dict[Prompt, str]:
    """For each prompt the key of the shortest one of its conversation: of all that are joined by being beginnings.

    A conversation begins another one where its messages, in whatever form (messages, or text with `Human:` and the
    like), are the first ones of the other. A text without roles begins another one where that goes on with a new line,
    or with an answer that was judged. Takes time in the length of the texts and n log n, n being the prompts.
    """
    prompts = list(dict.fromkeys(c.prompt for c in comparisons))
    keys = {prompt: prompt_key(prompt) for prompt in prompts}
    joined = Groups(keys.values())
    written: dict[str, str] = {}
    for prompt, key in keys.items():
        joined.join(key, written.setdefault(_written_out(prompt), key))
    for beginning, longer in _nested(written):
        joined.join(written[beginning], written[longer])
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    answers = _answers(comparisons)
    for beginning, longer in _nested(texts):
        if _goes_on(longer, len(beginning), answers[beginning]):
            joined.join(beginning, longer)
    first = joined.first()
    return {prompt: first[key] for prompt, key in keys.items()}


def history_of(prompt: Prompt) -> tuple[str, ...]:
    """The answers that a prompt holds."""
    return tuple(content for role, content in _turns(prompt) if role == _ASSISTANT)


class Groups:
    """Disjoint sets of strings."""

    def __init__(self, members: Iterable[str]):
        self._parent = {member: member for member in members}

    def join(self, a: str, b: str) -> None:
        """Make one set of those of two members."""
        self._parent[self._root(a)] = self._root(b)

    def first(self) -> dict[str, str]:
        """For each member the shortest one of its set, of several the first in the alphabet."""
        roots = {member: self._root(member) for member in self._parent}
        best: dict[str, str] = {}
        for member in sorted(roots, key=lambda member: (len(member), member)):
            best.setdefault(roots[member], member)
        return {member: best[root] for member, root in roots.items()}

    def _root(self, member: str) -> str:
        parent = self._parent
        while (above := parent[member]) != member:
            parent[member] = parent[above]
            member = above
        return member


def _nested(texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(beginning, longer) of all distinct texts that begin with another one. Sorted, what begins alike is together."""
    around: list[str] = []
    for text in sorted(texts):
        while around and not text.startswith(around[-1]):
            around.pop()
        for beginning in around:
            yield beginning, text
        around.append(text)


def _answers(comparisons: Iterable[Comparison]) -> dict[str, list[str]]:
    """The answers that were judged, by prompts that are text."""
    found: dict[str, list[str]] = defaultdict(list)
    for c in comparisons:
        if isinstance(c.prompt, str):
            found[c.prompt] += [c.chosen, c.rejected]
    return found


def _goes_on(text: str, end: int, answers: Iterable[str]) -> bool:
    """Whether a text goes on behind position `end` with a new line or one of the answers."""
    rest = text[end:]
    if rest[:1] in "\r\n" or text[end - 1] == "\n":
        return True
    return any(rest.lstrip().startswith(answer.strip()) for answer in set(answers))


def _written_out(prompt: Prompt) -> str:
    """The conversation as one string, which another's begins with where its messages do."""
    return "".join(f"{role}\x02{content}\x01" for role, content in _turns(prompt))


def _turns(prompt: Prompt) -> list[tuple[str, str]]:
    """(role, content) of each turn; text that begins with a role is taken apart at its roles."""
    if not isinstance(prompt, str):
        return [(message.role, message.content.strip()) for message in as_messages(prompt)]
    text = prompt.strip()
    if not _HEADER.match(text):
        return [(_USER, text)]
    headers = list(_HEADER.finditer(text))
    ends = [*(header.start() for header in headers[1:]), len(text)]
    turns = [
        (_ROLES[header[1].lower()], text[header.end() : end].strip()) for header, end in zip(headers, ends, strict=True)
    ]
    return turns[:-1] if len(turns) > 1 and turns[-1] == (_ASSISTANT, "") else turns
