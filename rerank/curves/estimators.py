"""Unbiased best-of-k estimates, for every k, from one pool of responses.

A random subset of k of the pool's n responses, drawn without replacement, is a sample of k responses of the generator;
the mean over all such subsets has a closed form in the ranks. Ties in reward are broken at random, in expectation.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from prm.metrics import Array


def picks(proxy: ArrayLike) -> Array:
    """P(response j is the best of k by the proxy), [n, n]: row k - 1, column j.

    The expected value of best-of-k under any judge is then `picks(proxy) @ values`.
    """
    r = _without_nan(proxy)
    n = len(r)
    k, ranks = np.arange(1, n + 1)[:, None], np.arange(n)
    strict = np.exp(_log_choose(ranks, k - 1) - _log_choose(n, k))  # all others of the subset rank lower
    return _average_ties(strict, r)


def win_rates(proxy: ArrayLike, gold: ArrayLike) -> Array:
    """P(the judge prefers the proxy's best of k to a fresh response), [n - 1]; a tie counts half.

    The fresh response comes from outside the subset, so k ends at n - 1. With the judge as its own proxy and no ties
    this is k / (k + 1), the maximum.
    """
    r, g = _without_nan(proxy), _without_nan(gold)
    n = len(r)
    k, ranks = np.arange(1, n)[:, None], np.arange(n)
    pairs = _log_choose(n, k) + np.log(n - k)
    above = np.exp(_log_choose(ranks, k - 1) - pairs)  # the proxy ranks the opponent above the pick
    below = np.exp(_log_choose(ranks - 1, k - 1) - pairs)  # or below it: one rank fewer is left for the subset
    _, group, counts = np.unique(r, return_inverse=True, return_counts=True)
    first, m = (np.cumsum(counts) - counts)[group], counts[group]
    order = np.argsort(r, kind="stable")
    offset = np.arange(n) - first[order]  # number of ties below each rank
    others = np.maximum(m[order] - 1, 1)
    tied = (offset * below + (m[order] - 1 - offset) * above) / others
    wins = (g[:, None] > g[None, :]) + 0.5 * (g[:, None] == g[None, :])
    lower, upper = group[None, :] < group[:, None], group[None, :] > group[:, None]
    equal = ~lower & ~upper & ~np.eye(n, dtype=np.bool_)
    parts = ((below, lower), (above, upper), (tied, equal))
    return np.asarray(sum(_average_ties(weights, r) @ (wins * mask).sum(1) for weights, mask in parts))


def distinct(texts: Sequence[str]) -> Array:
    """Expected number of distinct texts in a random subset of k, [n]."""
    n = len(texts)
    counts = np.array(list(Counter(texts).values()))
    k = np.arange(1, n + 1)[:, None]
    return np.asarray((1.0 - np.exp(_log_choose(n - counts, k) - _log_choose(n, k))).sum(1))


def kl_bound(k: ArrayLike) -> Array:
    """log k - (k - 1) / k: upper bound of KL(best-of-k || generator), in nats (Beirami et al. 2024)."""
    n = np.asarray(k, np.float64)
    return np.asarray(np.log(n) - (n - 1.0) / n)


def win_bound(k: ArrayLike) -> Array:
    """k / (k + 1): upper bound of best-of-k's win rate against a fresh response."""
    n = np.asarray(k, np.float64)
    return np.asarray(n / (n + 1.0))


def _without_nan(values: ArrayLike) -> Array:
    r = np.asarray(values, np.float64)
    if np.isnan(r).any():
        raise ValueError("a reward is not a number (NaN)")
    return r


def _average_ties(by_rank: Array, proxy: Array) -> Array:
    """Map weights [k, n] of ascending ranks to responses; tied responses get the mean weight of their ranks."""
    _, group, counts = np.unique(proxy, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return np.asarray((np.add.reduceat(by_rank, first, axis=1) / counts)[:, group])


def _log_choose(n: ArrayLike, k: ArrayLike) -> Array:
    """log C(n, k); -inf if there is no such subset."""
    a, b = (x.astype(np.float64) for x in np.broadcast_arrays(np.asarray(n), np.asarray(k)))
    with np.errstate(invalid="ignore"):
        log_counts = gammaln(a + 1.0) - gammaln(b + 1.0) - gammaln(a - b + 1.0)
    possible: NDArray[np.bool_] = (b >= 0) & (b <= a)
    return np.where(possible, log_counts, -np.inf)
