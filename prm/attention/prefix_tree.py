"""The order in which token sequences are processed, so that no shared prefix is processed twice. No torch here.

Sequences with common prefixes form a prefix tree of spans of tokens. Spans are ordered depth first: each comes after
its ancestors and directly before its descendants, so that all tokens that follow it, in any sequence, are one
contiguous range. A prefix of a text (a chat template, a user, a prompt) is thus processed once for all its
continuations, and user tokens in the suffix are one more span.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_MIN_SAVED_TOKENS = 8  # by sharing: one more attention call in each layer costs about as much
_MAX_PADDING_FACTOR = 1.5  # of the attention's work; attention is a tenth of all work


class Call(NamedTuple):
    """One attention call: the token indices of m rows of queries and keys; -1 pads on the right.

    Args:
        queries: [m, lq], among the pack's own tokens.
        keys: [m, lk], among the carried tokens followed by the pack's own.
    """

    queries: Ints
    keys: Ints


class Pack(NamedTuple):
    """Tokens that go through the backbone together, without padding.

    Args:
        start, stop: the range of tokens in the plan's order.
        carried: number of earlier tokens whose keys and values these attend to.
        within: causal calls: each span attends to itself.
        above: full calls: descendants attend to a whole span.
        ends: for each carried and own token, the end of the range of own tokens that attend to it, which begins with
            itself; it may be past the pack.
        keep: indices, among the carried and own tokens, of those that the next pack carries.
    """

    start: int
    stop: int
    carried: int
    within: list[Call]
    above: list[Call]
    ends: Ints
    keep: Ints


@dataclass(frozen=True)
class Plan:
    """The prefix tree of a list of sequences; spans and tokens in processing order.

    Args:
        ids, positions: each token's id, and its position in its sequences, int64 [t].
        before: the index of each token's predecessor, -1 for first tokens, int64 [t].
        first, length, end: each span's first token, its number of tokens, and the end of its descendants' tokens.
        parent: each span's parent span, -1 for roots.
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
        """Indices of a sequence's tokens at positions start to stop, half open."""
        pieces, span = [], int(self.leaf[sequence])
        while span >= 0:
            begin = int(self.positions[self.first[span]])
            low, high = max(start, begin), min(stop, begin + int(self.length[span]))
            if low < high:
                pieces.append(np.arange(low, high) - begin + self.first[span])
            if begin <= start:
                break
            span = int(self.parent[span])
        return np.concatenate(pieces[::-1]) if pieces else np.empty(0, np.int64)

    def packs(self, max_tokens: int) -> Iterator[Pack]:
        """Packs of complete spans, at most `max_tokens` tokens each; a longer span is a pack of its own."""
        carried_spans: list[int] = []  # outermost first
        start = 0
        while start < len(self.first):
            budget_end = self.first[start] + max(max_tokens, int(self.length[start]))
            stop = int(np.searchsorted(self.first + self.length, budget_end, "right"))
            next_carried = self._path(stop) if stop < len(self.first) else []
            yield self._pack(carried_spans, start, stop, next_carried)
            carried_spans, start = next_carried, stop

    def _path(self, span: int) -> list[int]:
        path: list[int] = []
        while (span := int(self.parent[span])) >= 0:
            path.append(span)
        return path[::-1]

    def _pack(self, carried_spans: list[int], start: int, stop: int, next_carried: list[int]) -> Pack:
        spans = [*carried_spans, *range(start, stop)]
        lengths = self.length[spans]
        begins = np.cumsum(lengths) - lengths  # of each span, among carried and own tokens
        offset = dict(zip(spans, begins.tolist(), strict=True))
        carried, first = int(lengths[: len(carried_spans)].sum()), int(self.first[start])
        last = int(self.first[stop - 1] + self.length[stop - 1])

        def stretch(span: int) -> Ints:
            return np.arange(offset[span], offset[span] + self.length[span])

        own_ranges = [stretch(span) for span in range(start, stop)]
        levels: dict[int, int] = {-1: -1}
        below: list[list[tuple[Ints, Ints]]] = [[] for _ in spans]  # by level: a call must not contain a query twice
        for span in spans:
            level = levels[span] = levels[int(self.parent[span])] + 1
            low, high = max(first, int(self.first[span] + self.length[span])), min(last, int(self.end[span]))
            if low < high:
                below[level].append((np.arange(low, high) - first, stretch(span)))
        keep = np.concatenate([stretch(span) for span in next_carried]) if next_carried else np.empty(0, np.int64)
        within = _calls([(keys - carried, keys) for keys in own_ranges])
        above = [call for rows in below for call in _calls(rows)]
        ends = np.repeat(self.end[spans] - first, lengths)
        return Pack(first, last, carried, within, above, ends, keep)


def make_plan(sequences: Sequence[list[int]]) -> Plan:
    """The prefix tree of non-empty sequences of ids, in any order; duplicates share all their tokens."""
    order: list[int] = []
    representative = list(range(len(sequences)))  # the first equal sequence
    for i in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        if order and sequences[i] == sequences[order[-1]]:
            representative[i] = order[-1]
        else:
            order.append(i)
    shared = [shared_start(sequences[a], sequences[b]) for a, b in pairwise(order)]
    shared_with_previous = np.array([0, *shared], np.int64)  # length of the common prefix
    spans: list[tuple[int, int, int, int]] = []  # parent, sequence, start and stop position
    leaf = np.zeros(len(sequences), np.int64)
    todo = [(0, len(order), 0, -1)]  # range of the order, covered prefix length, its last span
    while todo:
        low, high, depth, parent = todo.pop()
        if high - low == 1:
            sequence = order[low]
            if len(sequences[sequence]) > depth:
                spans.append((parent, sequence, depth, len(sequences[sequence])))
                parent = len(spans) - 1
            leaf[sequence] = parent
            continue
        inner = shared_with_previous[low + 1 : high]
        shared_length = int(inner.min())
        cuts = [low, *(np.flatnonzero(inner == shared_length) + low + 1).tolist(), high]
        if (shared_length - depth) * (len(cuts) - 2) >= _MIN_SAVED_TOKENS:
            spans.append((parent, order[low], depth, shared_length))
            parent, depth = len(spans) - 1, shared_length
        todo += [(a, b, depth, parent) for a, b in reversed(list(pairwise(cuts)))]
    return _plan(sequences, spans, leaf[representative])


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
    """Length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))


def _calls(rows: list[tuple[Ints, Ints]]) -> list[Call]:
    """Group rows of (queries, keys) of similar size into padded calls."""
    rows = sorted(rows, key=lambda row: (-len(row[1]), -len(row[0])))
    calls: list[Call] = []
    group: list[tuple[Ints, Ints]] = []
    work = longest_query = 0
    for row in rows:
        size = len(row[0]) * len(row[1])
        new_longest = max(longest_query, len(row[0]))
        if group and (len(group) + 1) * new_longest * len(group[0][1]) > _MAX_PADDING_FACTOR * (work + size):
            calls.append(_padded(group))
            group, work, new_longest = [], 0, len(row[0])
        group.append(row)
        work, longest_query = work + size, new_longest
    return [*calls, _padded(group)] if group else calls


def _padded(rows: list[tuple[Ints, Ints]]) -> Call:
    def pad(side: list[Ints]) -> Ints:
        out = np.full((len(side), max(map(len, side))), -1, np.int64)
        for i, tokens in enumerate(side):
            out[i, : len(tokens)] = tokens
        return out

    queries, keys = zip(*rows, strict=True)
    return Call(pad(list(queries)), pad(list(keys)))
