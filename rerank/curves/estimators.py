"""What N buys: unbiased best-of-k for every k from one pool of answers. Numbers in, numbers out.

A random k of the pool's n answers, without replacement, are k answers of the generator; the mean over all such subsets
has a closed form in the ranks. Equal rewards are shared: as if they had been put in a random order.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from prm.metrics import Array


def picks(proxy: ArrayLike) -> Array:
    """P(answer j is the best of k by the proxy), [n, n]: row k - 1, and a column for each answer.

    What best-of-k is worth by any judge is then `picks(proxy) @ values`.
    """
    r = _numbers(proxy)
    n = len(r)
    k, place = np.arange(1, n + 1)[:, None], np.arange(n)
    strict = np.exp(_log_choose(place, k - 1) - _log_choose(n, k))  # all others of the subset stand below
    return _shared(strict, r)


def win_rates(proxy: ArrayLike, gold: ArrayLike) -> Array:
    """P(the best of k by the proxy beats a fresh answer by the judge), [n - 1], a tie counting half.

    The fresh answer is one of those outside of the subset, so that k ends at n - 1. With the judge as its own proxy
    and no ties this is k / (k + 1), the most there is.
    """
    r, g = _numbers(proxy), _numbers(gold)
    n = len(r)
    k, place = np.arange(1, n)[:, None], np.arange(n)
    pairs = _log_choose(n, k) + np.log(n - k)
    above = np.exp(_log_choose(place, k - 1) - pairs)  # the opponent stands above the pick, by the proxy
    below = np.exp(_log_choose(place - 1, k - 1) - pairs)  # or below, where the subset has a place less to choose from
    _, group, counts = np.unique(r, return_inverse=True, return_counts=True)
    first, m = (np.cumsum(counts) - counts)[group], counts[group]
    order = np.argsort(r, kind="stable")
    offset = np.arange(n) - first[order]  # how many equals stand below each place
    others = np.maximum(m[order] - 1, 1)
    beside = (offset * below + (m[order] - 1 - offset) * above) / others
    wins = (g[:, None] > g[None, :]) + 0.5 * (g[:, None] == g[None, :])
    lower, upper = group[None, :] < group[:, None], group[None, :] > group[:, None]
    equal = ~lower & ~upper & ~np.eye(n, dtype=np.bool_)
    parts = ((below, lower), (above, upper), (beside, equal))
    return np.asarray(sum(_shared(weights, r) @ (wins * where).sum(1) for weights, where in parts))


def distinct(texts: Sequence[str]) -> Array:
    """Expected number of distinct texts among a random k of these, [n]."""
    n = len(texts)
    counts = np.array(list(Counter(texts).values()))
    k = np.arange(1, n + 1)[:, None]
    return np.asarray((1.0 - np.exp(_log_choose(n - counts, k) - _log_choose(n, k))).sum(1))


def kl_bound(k: ArrayLike) -> Array:
    """log k - (k - 1) / k: the most that best-of-k can be from the generator, in nats (Beirami et al. 2024)."""
    n = np.asarray(k, np.float64)
    return np.asarray(np.log(n) - (n - 1.0) / n)


def win_bound(k: ArrayLike) -> Array:
    """k / (k + 1): the most that best-of-k can win against a fresh answer."""
    n = np.asarray(k, np.float64)
    return np.asarray(n / (n + 1.0))


def _numbers(values: ArrayLike) -> Array:
    r = np.asarray(values, np.float64)
    if np.isnan(r).any():
        raise ValueError("a reward is not a number (NaN)")
    return r


def _shared(by_place: Array, proxy: Array) -> Array:
    """Weights [k, n] of places in ascending order, as weights of answers; equal ones have the mean of their places."""
    _, group, counts = np.unique(proxy, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return np.asarray((np.add.reduceat(by_place, first, axis=1) / counts)[:, group])


def _log_choose(n: ArrayLike, k: ArrayLike) -> Array:
    """log C(n, k), -inf where there is no such subset."""
    a, b = (x.astype(np.float64) for x in np.broadcast_arrays(np.asarray(n), np.asarray(k)))
    with np.errstate(invalid="ignore"):
        found = gammaln(a + 1.0) - gammaln(b + 1.0) - gammaln(a - b + 1.0)
    possible: NDArray[np.bool_] = (b >= 0) & (b <= a)
    return np.where(possible, found, -np.inf)
