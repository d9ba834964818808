"""Finds the prompts of one conversation: those of which one begins with the other. Does not import torch.

The prompt of a conversation's second turn contains the response chosen in the first, so training on the second leaks a
held-out first.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from prm.data.comparison import Comparison, Prompt, as_messages, prompt_key

_USER, _ASSISTANT, _SYSTEM = "user", "assistant", "system"
_ROLES = dict.fromkeys(("human", "user", "prompter"), _USER) | {"system": _SYSTEM}
_ROLES |= dict.fromkeys(("assistant", "ai", "bot", "model", "gpt", "chatbot"), _ASSISTANT)
# "Human:", "### Assistant:", "[user]:", "<|user|>" at the start of a line: a conversation as plain text
_HEADER = re.compile(
    rf"^[ \t]*(?:#+[ \t]*|[\[(]|<\|)?({'|'.join(_ROLES)})(?:\|>|[\])]?[ \t]*:)", re.IGNORECASE | re.MULTILINE
)


def first_prompts(comparisons: Sequence[Comparison]) -> dict[Prompt, str]:
    """Map each prompt to the key of the shortest prompt of its conversation.

    Two prompts are one conversation if the messages of one are the first messages of the other, whether given as
    messages or as text with `Human:` and the like. A text without roles begins another one if that continues with a
    new line or with a compared response. Takes time linear in the length of the texts, and n log n for n prompts.
    """
    prompts = list(dict.fromkeys(c.prompt for c in comparisons))
    keys = {prompt: prompt_key(prompt) for prompt in prompts}
    joined = Groups(keys.values())
    by_text: dict[str, str] = {}
    for prompt, key in keys.items():
        joined.join(key, by_text.setdefault(_as_text(prompt), key))
    for beginning, longer in _nested(by_text):
        joined.join(by_text[beginning], by_text[longer])
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    responses = _responses(comparisons)
    for beginning, longer in _nested(texts):
        if _continues(longer, len(beginning), responses[beginning]):
            joined.join(beginning, longer)
    first = joined.first()
    return {prompt: first[key] for prompt, key in keys.items()}


def history_of(prompt: Prompt) -> tuple[str, ...]:
    """The assistant messages in a prompt."""
    return tuple(content for role, content in _turns(prompt) if role == _ASSISTANT)


class Groups:
    """Disjoint sets of strings (union-find)."""

    def __init__(self, members: Iterable[str]):
        self._parent = {member: member for member in members}

    def join(self, a: str, b: str) -> None:
        """Merge the sets of two members."""
        self._parent[self._root(a)] = self._root(b)

    def first(self) -> dict[str, str]:
        """Map each member to the shortest member of its set, the alphabetically first of several."""
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
    """(beginning, longer) for all pairs of distinct texts of which one begins with the other."""
    beginnings: list[str] = []  # in sorted order, texts follow their beginnings
    for text in sorted(texts):
        while beginnings and not text.startswith(beginnings[-1]):
            beginnings.pop()
        for beginning in beginnings:
            yield beginning, text
        beginnings.append(text)


def _responses(comparisons: Iterable[Comparison]) -> dict[str, list[str]]:
    """The compared responses by prompt, for prompts that are text."""
    responses: dict[str, list[str]] = defaultdict(list)
    for c in comparisons:
        if isinstance(c.prompt, str):
            responses[c.prompt] += [c.chosen, c.rejected]
    return responses


def _continues(text: str, end: int, responses: Iterable[str]) -> bool:
    """Whether a text continues after position `end` with a new line or one of the responses."""
    rest = text[end:]
    if rest[:1] in "\r\n" or text[end - 1] == "\n":
        return True
    return any(rest.lstrip().startswith(response.strip()) for response in set(responses))


def _as_text(prompt: Prompt) -> str:
    """The conversation as one string: a prefix of another's if and only if its messages are."""
    return "".join(f"{role}\x02{content}\x01" for role, content in _turns(prompt))


def _turns(prompt: Prompt) -> list[tuple[str, str]]:
    """(role, content) of each turn; text that begins with a role is split at its roles."""
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
