"""A feedback log as arrays: users, prompts and responses become positions in sorted lists."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prm.data.baselines import count_words
from prm.data.comparison import Comparison, prompt_key
from prm.metrics import Array, Estimate, estimate, ratio

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Log:
    """One entry per comparison, [n] each, sorted by content, so that the order of the log does not matter.

    Args:
        people, prompts: numbers of users and prompts; `user` and `prompt` are below them.
        texts: distinct responses; `chosen` and `rejected` are positions in it.
        words: number of words of each distinct response, [len(texts)].
        pair: an id from 0, equal for the same two responses to the same prompt.
        tie: true if neither response is preferred.
        first: 1 if the chosen response was shown first, 0 if second, NaN if unknown.
        row: position in the log.
    """

    people: int
    prompts: int
    texts: Sequence[str]
    words: Ints
    user: Ints
    prompt: Ints
    chosen: Ints
    rejected: Ints
    pair: Ints
    tie: Bools
    first: Array
    row: Ints

    @property
    def longer_won(self) -> Array:
        """1 if the chosen response has more words, 0 if fewer, NaN for equal lengths and ties, [n]."""
        difference = self.words[self.chosen] - self.words[self.rejected]
        return np.where(self.tie | (difference == 0), np.nan, difference > 0)


def encode_log(comparisons: Sequence[Comparison]) -> Log:
    """Convert comparisons to arrays."""
    users, user = _codes([c.user_id for c in comparisons])
    keys = {prompt: prompt_key(prompt) for prompt in {c.prompt for c in comparisons}}
    prompts, prompt = _codes([keys[c.prompt] for c in comparisons])
    texts, responses = _codes([c.chosen for c in comparisons] + [c.rejected for c in comparisons])
    chosen, rejected = responses[: len(comparisons)], responses[len(comparisons) :]
    tie = np.array([c.is_tie for c in comparisons], np.bool_)
    first = np.array([np.nan if c.chosen_first is None else c.chosen_first for c in comparisons], np.float64)
    # the responses of a tie are in no particular order
    low, high = np.minimum(chosen, rejected), np.maximum(chosen, rejected)
    pair = np.unique(_joined(_joined(prompt, low, len(texts)), high, len(texts)), return_inverse=True)[1]
    order = np.lexsort((np.nan_to_num(first, nan=2.0), tie, chosen, pair, user))
    columns = (user, prompt, chosen, rejected, pair, tie, first, np.arange(len(comparisons)))
    length = np.array([count_words(text) for text in texts], np.int64)
    return Log(len(users), len(prompts), texts, length, *(column[order] for column in columns))  # type: ignore[arg-type]


def _codes(values: Sequence[str]) -> tuple[list[str], Ints]:
    """(sorted distinct values, position of each value in them)."""
    distinct = sorted(set(values))
    position = {value: i for i, value in enumerate(distinct)}
    return distinct, np.array([position[value] for value in values], np.int64)


def _joined(a: Ints, b: Ints, n_b: int) -> Ints:
    """A small id for each (a, b), with b below `n_b`; small ids avoid overflow in further joins."""
    return np.unique(a * n_b + b, return_inverse=True)[1].astype(np.int64)


def distinct(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """The distinct (a, b), sorted, as two columns."""
    width = int(b.max()) + 1 if len(b) else 1
    codes = np.unique(a * width + b)
    return codes // width, codes % width


def grouped(values: Array, groups: Ints) -> Estimate | None:
    """Mean of the values that are not NaN, with a 95% interval by bootstrap over groups; `None` without any."""
    return None if np.isnan(values).all() else estimate(values, groups)


def interval(sums: Array, counts: Array) -> Estimate | None:
    """Ratio of the sums with its 95% interval; `None` if the counts are all 0."""
    return ratio(sums, counts) if counts.sum() else None
