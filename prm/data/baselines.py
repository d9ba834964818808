"""Baselines that use no text beyond its length in words."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import lgamma

import numpy as np

from prm.data.comparison import Comparison
from prm.io.run_files import Controls
from prm.metrics import Array

# weights of the rate of all users in a user's own, in comparisons
LENGTH_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e9)
_RATE_EPS = 1e-6


def count_words(text: str) -> int:
    """Length of a text in words."""
    return len(text.split())


def longest(comparisons: Sequence[Comparison]) -> Array:
    """Margin of "the longer response is better", in words, [n]."""
    return np.array([count_words(c.chosen) - count_words(c.rejected) for c in comparisons], np.float64)


def length_votes(train: Sequence[Comparison], earlier: Controls | None = None) -> Controls:
    """What users chose of two responses of unequal length: per user, and under "" of all users.

    `length_sign` has votes for the longer response minus votes for the shorter one, `length_count` the number of
    comparisons. `earlier` ones are added; without their counts there are none.
    """
    signs: dict[str, float] = defaultdict(float, earlier["length_sign"] if earlier else {})
    counts: dict[str, float] = defaultdict(float, earlier.get("length_count", {}) if earlier else {})
    for c in train:
        longer = float(np.sign(count_words(c.chosen) - count_words(c.rejected)))
        for user in (c.user_id, ""):
            signs[user] += longer * (2.0 * c.p_chosen - 1.0)
            counts[user] += abs(longer)
    if earlier and "length_count" not in earlier:
        return {"length_sign": dict(signs)}
    return {"length_sign": dict(signs), "length_count": dict(counts)}


def votes_of(votes: Controls, keep: Callable[[str], bool]) -> Controls:
    """The votes of the users to keep."""
    kept: Controls = {"length_sign": {user: sign for user, sign in votes["length_sign"].items() if keep(user)}}
    if "length_count" in votes:
        kept["length_count"] = {user: count for user, count in votes["length_count"].items() if keep(user)}
    return kept


def length_sign(comparisons: Sequence[Comparison], signs: Mapping[str, float]) -> Array:
    """Margin of "this user prefers longer (or shorter) responses", in words, [n]; unknown users get the sign of all."""
    taste = np.array([np.sign(signs.get(c.user_id, signs.get("", 0.0))) for c in comparisons])
    return np.asarray(taste * longest(comparisons))


def length_margins(comparisons: Sequence[Comparison], votes: Controls, weight: float | None = None) -> Array:
    """Logits of P(chosen preferred), [n], by how often the user chose the longer response: 0 for equal lengths.

    A user chooses the longer response with P = (number of such choices + weight * rate of all) / (number + weight);
    unknown users have the rate of all.

    Args:
        votes: with counts.
        weight: by default, of `LENGTH_WEIGHTS`, the one under which the votes are most likely if each user's rate is
            drawn from a beta distribution with the mean of all and this weight.
    """
    counts = votes["length_count"]
    users = {user: ((count + votes["length_sign"].get(user, 0.0)) / 2.0, count) for user, count in counts.items()}
    overall = rate_of_all(*users.pop("", (0.0, 0.0)))
    if weight is None:
        weight = max(LENGTH_WEIGHTS, key=lambda w: sum(_log_likelihood(*user, overall, w) for user in users.values()))
    longer, count = np.array([users.get(c.user_id, (0.0, 0.0)) for c in comparisons]).T
    rate = np.clip(smoothed_rate(longer, count, overall, weight), _RATE_EPS, 1.0 - _RATE_EPS)
    return np.asarray(np.sign(longest(comparisons)) * np.log(rate / (1.0 - rate)))


def rate_of_all(longer: float, count: float) -> float:
    """P(the longer response is chosen) of all users together; 1/2 without a comparison."""
    return (longer + 1.0) / (count + 2.0)


def smoothed_rate(longer: Array, count: Array, overall: float, weight: float) -> Array:
    """P(the longer response is chosen) of each user, [n], who chose it so often of `count` times."""
    return (longer + weight * overall) / (count + weight)


def _log_likelihood(longer: float, count: float, rate: float, weight: float) -> float:
    """Of a user's choices under a beta-binomial distribution, without what does not depend on the weight."""
    a, b = weight * rate, weight * (1.0 - rate)
    return (
        lgamma(longer + a) + lgamma(count - longer + b) - lgamma(count + a + b) - lgamma(a) - lgamma(b) + lgamma(a + b)
    )


def shuffled_users(users: Sequence[str], seed: int = 0) -> dict[str, str]:
    """Map each user to another one at random; with two or more users, none is mapped to themselves."""
    order = sorted(set(users))
    random.Random(seed).shuffle(order)
    return dict(zip(order, order[1:] + order[:1], strict=True))
