"""Cheap signals, without a model, of whether users differ systematically. Arrays in, numbers out.

A vote is one user's preference in one pair of responses: +1 for the one whose text sorts first, -1 for the other. A
user who compared a pair several times has the majority's vote, and none if both are equally frequent.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from prm.data.profile.arrays import Array, Ints, Log, interval
from prm.metrics import Estimate

LEAST = 10  # minimum number of comparisons for a statement about a user
_ALPHA, _SURE, _HANDFUL = 0.05, 0.01, 0.02


@dataclass(frozen=True)
class Agreement:
    """Agreement of two users on one pair, without ties.

    Args:
        pairs: pairs that two or more users decided.
        comparisons: number of (user, user, pair), each once.
        agree: share in [0, 1] in which both prefer the same response, with its interval by bootstrap over pairs. Coin
            flips give 0.5.
    """

    pairs: int
    comparisons: int
    agree: Estimate


@dataclass(frozen=True)
class LengthTaste:
    """Whether users differ in how often they prefer the longer response, among those with `LEAST` decided pairs.

    Args:
        people: number of users compared.
        within_prompts: each user is compared with other users on the same prompts, so that prompts on which all prefer
            longer responses have no effect; false if too few prompts are shared for that.
        chi2, p: test of the spread over users against chance (`people` - 1 degrees of freedom).
        rates: users by longer-won rate, in ten bins from 0 to 1.
        expected: the same if all users had one rate, by binomial chance.
        longer, shorter: users who prefer the longer or the shorter response significantly (5%, two-sided).
        by_chance: users expected in each of the two if length did not matter.
        opposed: true if there are significantly (1%) users of both kinds, each at least 2% of all. Otherwise users may
            differ in how carefully they compare, and not in what they like.
    """

    people: int
    within_prompts: bool
    chi2: float
    p: float
    rates: tuple[int, ...]
    expected: tuple[float, ...]
    longer: int
    shorter: int
    by_chance: float
    opposed: bool


@dataclass(frozen=True)
class Dissent:
    """Whether some users go against the majority more often than others, by taste or carelessness.

    Args:
        people: users with `LEAST` votes on pairs on which the others have a majority.
        rate: share of such votes that go against it.
        correlation, p: over users, of this rate on two random halves of their votes.
    """

    people: int
    rate: float
    correlation: float
    p: float


class Votes(NamedTuple):
    """One entry per (user, pair), sorted: both, the vote (+1 or -1), and ids of the pair's responses, per prompt."""

    person: Ints
    pair: Ints
    vote: Ints
    first: Ints
    second: Ints


def count_votes(log: Log) -> Votes:
    """Each user's vote on each pair."""
    kept = ~log.tie
    width = int(log.pair.max()) + 1
    key, index = np.unique(log.user[kept] * width + log.pair[kept], return_inverse=True)
    signs = np.where(log.chosen[kept] < log.rejected[kept], 1.0, -1.0)
    vote = np.sign(np.bincount(index, weights=signs, minlength=len(key))).astype(np.int64)
    low, high = np.minimum(log.chosen, log.rejected), np.maximum(log.chosen, log.rejected)
    answers = np.zeros((2, width), np.int64)
    answers[:, log.pair] = log.prompt * len(log.texts) + np.array([low, high])
    person, pair = key // width, key % width
    return Votes(*(column[vote != 0] for column in (person, pair, vote, *answers[:, pair])))


def find_agreement(votes: Votes) -> Agreement | None:
    """Agreement on shared pairs; `None` if no pair is shared."""
    ups, downs = (np.bincount(votes.pair, weights=votes.vote == sign).astype(np.float64) for sign in (1, -1))
    n = ups + downs
    total, same = n * (n - 1) / 2, (ups * (ups - 1) + downs * (downs - 1)) / 2
    shared = total > 0
    agree = interval(same[shared], total[shared])
    return None if agree is None else Agreement(int(shared.sum()), int(total.sum()), agree)


def find_length_taste(log: Log) -> LengthTaste | None:
    """Spread of longer-won rates over users; `None` with fewer than two users to compare."""
    won = log.longer_won
    kept = ~np.isnan(won)
    person, prompt, y = log.user[kept], log.prompt[kept], won[kept]
    n = np.bincount(person, minlength=log.people).astype(np.int64)
    k = np.bincount(person, weights=y, minlength=log.people).round().astype(np.int64)
    compared = n >= LEAST
    # a prompt of only one user says nothing about differences between users
    mine = np.unique(prompt * log.people + person, return_counts=True)
    others = np.bincount(prompt, minlength=log.prompts)[mine[0] // log.people] - mine[1]
    shared = float(mine[1][others >= mine[1]].sum()) / max(len(y), 1) >= 0.5
    mean, variance = _by_chance(person, prompt if shared else np.zeros_like(prompt), y, log.people)
    compared &= variance > 1e-9
    m = int(compared.sum())
    if m < 2:
        return None
    # each term has mean 1 by chance, but only m - 1 are free: the users' deviations sum to 0
    chi2 = float(((k - mean) ** 2 / np.where(compared, variance, 1.0))[compared].sum()) * (m - 1) / m
    n, k = n[compared], k[compared]
    upper, lower = stats.binom.sf(k - 1, n, 0.5), stats.binom.cdf(k, n, 0.5)
    return LengthTaste(
        people=m,
        within_prompts=shared,
        chi2=chi2,
        p=float(stats.chi2.sf(chi2, m - 1)),
        rates=tuple(np.bincount(np.minimum(10 * k // n, 9), minlength=10).tolist()),
        expected=_binomial_bins(n, float(k.sum() / n.sum())),
        longer=int((upper < _ALPHA / 2).sum()),
        shorter=int((lower < _ALPHA / 2).sum()),
        by_chance=m * _ALPHA / 2,
        opposed=_surely_some(upper) and _surely_some(lower),
    )


def _surely_some(p: Array) -> bool:
    """Whether significantly more users than by chance have p below 2.5% or 0.05%, and at least 2% have p below 2.5%."""
    by_chance = (stats.binom.sf((p < level).sum() - 1, len(p), level) for level in (_ALPHA / 2, _ALPHA / 100))
    return bool(min(by_chance) < _SURE and (p < _ALPHA / 2).mean() >= _HANDFUL)


def _by_chance(person: Ints, stratum: Ints, y: Array, people: int) -> tuple[Array, Array]:
    """Mean and variance of each user's wins if the wins of each stratum fall on its comparisons at random, [users].

    Hypergeometric in each stratum, as in the Cochran-Mantel-Haenszel test.
    """
    size = np.bincount(stratum).astype(np.float64)
    rate = np.bincount(stratum, weights=y) / np.maximum(size, 1.0)
    key, n = np.unique(stratum * people + person, return_counts=True)
    s, user = key // people, key % people
    spread = n * rate[s] * (1.0 - rate[s]) * (size[s] - n) / np.maximum(size[s] - 1.0, 1.0)
    mean, variance = (np.bincount(user, weights=w, minlength=people) for w in (n * rate[s], spread))
    return mean.astype(np.float64), variance.astype(np.float64)


def _binomial_bins(n: Ints, rate: float) -> tuple[float, ...]:
    """Users expected in each tenth of the longer-won rate if all have one rate."""
    edges = -(-np.arange(10)[:, None] * n // 10)  # minimum number of wins in the bin
    below = stats.binom.cdf(edges - 1, n, rate).sum(axis=1)
    return tuple(np.diff([*below, float(len(n))]).tolist())


def find_dissent(votes: Votes, seed: int = 0) -> Dissent | None:
    """Split-half correlation of dissent; `None` with fewer than `LEAST` users to compare."""
    others = np.bincount(votes.pair, weights=votes.vote)[votes.pair] - votes.vote
    clear = others != 0
    person, dissents = votes.person[clear], (np.sign(others) != votes.vote)[clear].astype(np.float64)
    order = np.lexsort((np.random.default_rng(seed).random(len(person)), person))
    person, dissents = person[order], dissents[order]
    n = np.bincount(person)
    half = (np.arange(len(person)) - np.repeat(np.cumsum(n) - n, n)) % 2
    compared = n >= LEAST
    if compared.sum() < LEAST:
        return None
    rates = [
        (np.bincount(person, weights=dissents * (half == h)) / np.maximum(np.bincount(person, weights=half == h), 1))
        for h in (0, 1)
    ]
    a, b = rates[0][compared], rates[1][compared]
    if np.ptp(a) == 0.0 or np.ptp(b) == 0.0:
        return None
    test = stats.pearsonr(a, b, alternative="greater")
    rate = float(dissents[compared[person]].mean())
    return Dissent(int(compared.sum()), rate, float(test.statistic), float(test.pvalue))
