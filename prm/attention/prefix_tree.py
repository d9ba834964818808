"""What to read and in which order, so that no token is read twice. Numbers of tokens only: no torch here.

Sequences that begin alike share that beginning: together they form a tree of spans of tokens. A span is read after
all that stands before it, and right before everything that follows it, so that all that comes behind it, in any
sequence, is one stretch of the order. What is in front of a text (a chat template, a user, a prompt) is thus read once
for everything behind it, and a user behind the text is one more span.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_WORTH = 8  # tokens that sharing must save: one more call of the attention in each layer costs about as much
_WASTE = 1.5  # attention over padded rows may do this many times the work of the rows alone; it is a tenth of the whole


class Call(NamedTuple):
    """Rows of attention computed at once: places of the tokens that ask and of those they see; -1 pads on the right.

    Args:
        queries: [m, lq], counted among the pack's own tokens.
        keys: [m, lk], counted among the carried tokens and, behind them, the pack's own.
    """

    queries: Ints
    keys: Ints


class Pack(NamedTuple):
    """Tokens that go through the backbone together, without padding.

    Args:
        start, stop: the tokens, as a stretch of the plan's order.
        carried: tokens read before whose keys and values these still see.
        within: each span sees itself, causally.
        above: what follows a span sees all of it.
        keep: places, among the carried and the own tokens, of what the next pack carries.
    """

    start: int
    stop: int
    carried: int
    within: list[Call]
    above: list[Call]
    keep: Ints


@dataclass(frozen=True)
class Plan:
    """The tree of a list of sequences; spans and tokens in the order of reading.

    Args:
        ids, positions: each token's id, and its place in its sequences, int64 [t].
        before: the token that comes before each in its sequences, -1 where none does, int64 [t].
        first, length, end: each span's first token, its tokens, and where everything that follows it ends.
        parent: the span before each, -1 where none is.
        leaf: the span in which each sequence ends.
        last: last token of each sequence.
    """

    ids: Ints
    positions: Ints
    before: Ints
    first: Ints
    length: Ints
    end: Ints
    parent: Ints
    leaf: Ints
    last: Ints

    def tokens(self, sequence: int, start: int, stop: int) -> Ints:
        """The tokens at positions start to stop, half open, of a sequence."""
        found, span = [], int(self.leaf[sequence])
        while span >= 0:
            begin = int(self.positions[self.first[span]])
            low, high = max(start, begin), min(stop, begin + int(self.length[span]))
            if low < high:
                found.append(np.arange(low, high) - begin + self.first[span])
            if begin <= start:
                break
            span = int(self.parent[span])
        return np.concatenate(found[::-1]) if found else np.empty(0, np.int64)

    def packs(self, max_tokens: int) -> Iterator[Pack]:
        """Packs of at most `max_tokens` tokens, whole spans each; a longer span is one alone."""
        path: list[int] = []  # spans that are carried, outermost first
        start = 0
        while start < len(self.first):
            room = self.first[start] + max(max_tokens, int(self.length[start]))
            stop = int(np.searchsorted(self.first + self.length, room, "right"))
            following = self._path(stop) if stop < len(self.first) else []
            yield self._pack(path, start, stop, following)
            path, start = following, stop

    def _path(self, span: int) -> list[int]:
        found: list[int] = []
        while (span := int(self.parent[span])) >= 0:
            found.append(span)
        return found[::-1]

    def _pack(self, path: list[int], start: int, stop: int, following: list[int]) -> Pack:
        spans = [*path, *range(start, stop)]
        lengths = self.length[spans]
        begins = np.cumsum(lengths) - lengths  # of each span, among carried and own tokens
        place = dict(zip(spans, begins.tolist(), strict=True))
        carried, first = int(lengths[: len(path)].sum()), int(self.first[start])
        last = int(self.first[stop - 1] + self.length[stop - 1])

        def stretch(span: int) -> Ints:
            return np.arange(place[span], place[span] + self.length[span])

        own = [stretch(span) for span in range(start, stop)]
        levels: dict[int, int] = {-1: -1}
        behind: list[list[tuple[Ints, Ints]]] = [[] for _ in spans]  # by level: one call must not ask twice for a token
        for span in spans:
            level = levels[span] = levels[int(self.parent[span])] + 1
            low, high = max(first, int(self.first[span] + self.length[span])), min(last, int(self.end[span]))
            if low < high:
                behind[level].append((np.arange(low, high) - first, stretch(span)))
        keep = np.concatenate([stretch(span) for span in following]) if following else np.empty(0, np.int64)
        above = [call for rows in behind for call in _calls(rows)]
        return Pack(first, last, carried, _calls([(keys - carried, keys) for keys in own]), above, keep)


def make_plan(sequences: Sequence[list[int]]) -> Plan:
    """The tree of sequences of ids, none of them empty, in any order; equal ones are read once."""
    order: list[int] = []
    twin = list(range(len(sequences)))  # the first of those equal to each
    for i in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        if order and sequences[i] == sequences[order[-1]]:
            twin[i] = order[-1]
        else:
            order.append(i)
    shared = [shared_start(sequences[a], sequences[b]) for a, b in pairwise(order)]
    common = np.array([0, *shared], np.int64)  # ids that each, in this order, shares with the one before
    spans: list[tuple[int, int, int, int]] = []  # parent, sequence, its positions from and to
    leaf = np.zeros(len(sequences), np.int64)
    todo = [(0, len(order), 0, -1)]  # a range of the order, what is read of it so far, the span that ends there
    while todo:
        low, high, read, parent = todo.pop()
        if high - low == 1:
            sequence = order[low]
            if len(sequences[sequence]) > read:
                spans.append((parent, sequence, read, len(sequences[sequence])))
                parent = len(spans) - 1
            leaf[sequence] = parent
            continue
        inner = common[low + 1 : high]
        alike = int(inner.min())
        cuts = [low, *(np.flatnonzero(inner == alike) + low + 1).tolist(), high]
        if (alike - read) * (len(cuts) - 2) >= _WORTH:
            spans.append((parent, order[low], read, alike))
            parent, read = len(spans) - 1, alike
        todo += [(a, b, read, parent) for a, b in reversed(list(pairwise(cuts)))]
    return _plan(sequences, spans, leaf[twin])


def _plan(sequences: Sequence[list[int]], spans: list[tuple[int, int, int, int]], leaf: Ints) -> Plan:
    parent, _, begin, stop = (np.array(column, np.int64) for column in zip(*spans, strict=True))
    length = stop - begin
    first = np.cumsum(length) - length
    end = first + length
    for span in range(len(spans) - 1, -1, -1):
        if parent[span] >= 0:
            end[parent[span]] = max(end[parent[span]], end[span])
    total = int(length.sum())
    positions = np.arange(total) + np.repeat(begin - first, length)
    before = np.arange(total) - 1
    before[first] = np.where(parent >= 0, first[parent] + length[parent] - 1, -1)
    ids = np.concatenate([np.array(sequences[s][a:b], np.int64) for _, s, a, b in spans])
    ends = np.array([len(s) for s in sequences], np.int64)
    last = first[leaf] + ends - 1 - begin[leaf]
    return Plan(ids, positions, before, first, length, end, parent, leaf, last)


def shared_start(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of ids that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))


def _calls(rows: list[tuple[Ints, Ints]]) -> list[Call]:
    """Rows of (queries, keys), alike in size padded to one call."""
    rows = sorted(rows, key=lambda row: (-len(row[1]), -len(row[0])))
    calls: list[Call] = []
    group: list[tuple[Ints, Ints]] = []
    work = most = 0
    for row in rows:
        size = len(row[0]) * len(row[1])
        longest = max(most, len(row[0]))
        if group and (len(group) + 1) * longest * len(group[0][1]) > _WASTE * (work + size):
            calls.append(_padded(group))
            group, work, longest = [], 0, len(row[0])
        group.append(row)
        work, most = work + size, longest
    return [*calls, _padded(group)] if group else calls


def _padded(rows: list[tuple[Ints, Ints]]) -> Call:
    def pad(side: list[Ints]) -> Ints:
        out = np.full((len(side), max(map(len, side))), -1, np.int64)
        for i, places in enumerate(side):
            out[i, : len(places)] = places
        return out

    queries, keys = zip(*rows, strict=True)
    return Call(pad(list(queries)), pad(list(keys)))
