"""Baselines that use no text beyond its length in words."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from prm.data.comparison import Comparison
from prm.metrics import Array


def count_words(text: str) -> int:
    """Length of a text in words."""
    return len(text.split())


def longest(comparisons: Sequence[Comparison]) -> Array:
    """Margin of "the longer response is better", in words, [n]."""
    return np.array([count_words(c.chosen) - count_words(c.rejected) for c in comparisons], np.float64)


def length_signs(train: Sequence[Comparison], earlier: Mapping[str, float] | None = None) -> dict[str, float]:
    """Votes for the longer response minus votes for the shorter one: per user, and under "" of all users.

    `earlier` votes, of the same form, are added.
    """
    votes: dict[str, float] = defaultdict(float, earlier or {})
    for c in train:
        vote = float(np.sign(count_words(c.chosen) - count_words(c.rejected))) * (2.0 * c.p_chosen - 1.0)
        votes[c.user_id] += vote
        votes[""] += vote
    return dict(votes)


def length_sign(comparisons: Sequence[Comparison], signs: Mapping[str, float]) -> Array:
    """Margin of "this user prefers longer (or shorter) responses", in words, [n]; unknown users get the sign of all."""
    taste = np.array([np.sign(signs.get(c.user_id, signs.get("", 0.0))) for c in comparisons])
    return np.asarray(taste * longest(comparisons))


def shuffled_users(users: Sequence[str], seed: int = 0) -> dict[str, str]:
    """Map each user to another one at random; with two or more users, none is mapped to themselves."""
    order = sorted(set(users))
    random.Random(seed).shuffle(order)
    return dict(zip(order, order[1:] + order[:1], strict=True))
