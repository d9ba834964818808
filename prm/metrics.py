"""Numbers in, numbers out: how well margins predict labels, per pair, per person and with intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from prm.errors import PrmError

Array = NDArray[np.float64]

_RESAMPLES, _GROUPS = 2000, 5000


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs with its interval."""

    value: float
    low: float
    high: float


def correct(margin: ArrayLike, p_chosen: ArrayLike) -> Array:
    """1 where the chosen answer scores higher, 0 where lower, 0.5 for a tied prediction; NaN for a tied label.

    Raises `PrmError` for a margin that is not a number.
    """
    m, p = _numbers(margin), np.asarray(p_chosen, np.float64)
    right: Array = np.where(m > 0, 1.0, np.where(m == 0, 0.5, 0.0))
    return np.where(p == 0.5, np.nan, right)


def nll(margin: ArrayLike, p_chosen: ArrayLike) -> Array:
    """Cross-entropy of the label under sigmoid(margin), in nats. Raises `PrmError` for a margin that is no number."""
    m, p = _numbers(margin), np.asarray(p_chosen, np.float64)
    return np.asarray(p * np.logaddexp(0.0, -m) + (1.0 - p) * np.logaddexp(0.0, m))


def _numbers(margin: ArrayLike) -> Array:
    m = np.asarray(margin, np.float64)
    if broken := int(np.isnan(m).sum()):  # NaN stands for a tied label further on, and would be left out as one
        raise PrmError(f"{broken} of {m.size} rewards are not numbers (NaN): the model is broken, or diverged")
    return m


def estimate(values: ArrayLike, users: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of the values that are not NaN, with a 95% percentile interval by bootstrap over users.

    People, not pairs, are drawn: two judgements of one person are not independent. With one person the
    interval is the whole line.
    """
    return ratio(*per_user(values, users), seed)


def ratio(sums: ArrayLike, counts: ArrayLike, seed: int = 0) -> Estimate:
    """Sum of `sums` over sum of `counts`, one of each per group, with the interval by bootstrap over groups.

    A bootstrap over a million groups would take minutes. Past 5,000, groups are thrown together at random into
    5,000 blocks, whose means spread as much.
    """
    s, c = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    if len(s) > _GROUPS:
        block = np.random.default_rng(seed).permutation(len(s)) % _GROUPS
        s, c = (np.bincount(block, weights=x).astype(np.float64) for x in (s, c))
    value = float(s.sum() / c.sum()) if c.sum() else float("nan")
    if len(s) < 2:
        return Estimate(value, float("-inf"), float("inf"))
    interval = stats.bootstrap(
        (s, c),
        lambda x, n, axis=-1: x.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def per_user(values: ArrayLike, users: ArrayLike) -> tuple[Array, Array]:
    """(sums, counts) of the values that are not NaN, per user who has any, in sorted order of users."""
    v, names = np.asarray(values, np.float64), np.asarray(users)
    kept = ~np.isnan(v)
    _, index = np.unique(names[kept], return_inverse=True)
    sums = np.bincount(index, weights=v[kept]).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def macro(values: ArrayLike, users: ArrayLike) -> float:
    """Mean over users of each user's mean: everyone counts alike, however much they judged."""
    sums, counts = per_user(values, users)
    return float((sums / counts).mean()) if len(sums) else float("nan")


def noise_ceiling(p: ArrayLike) -> float:
    """Best accuracy that any model can expect on labels drawn with probabilities p: the mean of max(p, 1 - p)."""
    q = np.asarray(p, np.float64)
    return float(np.maximum(q, 1.0 - q).mean())
