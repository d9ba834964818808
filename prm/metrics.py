"""Numbers in, numbers out: how well margins predict labels, per pair, per person and with intervals."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from prm.errors import PrmError

Array = NDArray[np.float64]

LEAST_JUDGED = 10  # judgements below which a person's own accuracy is noise
FEW_PEOPLE = 5  # below which an interval over people says next to nothing
_RESAMPLES, _GROUPS, _BINS = 2000, 5000, 10


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Average:
    """A mean over people of each one's mean, its standard error (NaN for one person), and how many they are."""

    value: float
    error: float
    people: int


@dataclass(frozen=True)
class Bin:
    """Pairs that a model is about equally sure of: its mean P(the answer it picks), and how often that one won.

    `low` and `high` end the 95% interval of `observed` by Clopper and Pearson, a tie being half a win. It takes pairs
    as independent: where few people or prompts stand behind many pairs, it is too short.
    """

    pairs: int
    predicted: float
    observed: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """How far predicted probabilities are from what happened.

    Args:
        error: expected calibration error: mean over pairs of their bin's |predicted - observed|, in [0, 0.5].
        by_chance: what it would be on average, on as many pairs, if every prediction were right: it is never 0.
        bins: of equal numbers of pairs, from the least sure to the surest.
    """

    error: float
    by_chance: float
    bins: tuple[Bin, ...]

    @property
    def predicted(self) -> float:
        """Mean P(the answer it picks) over pairs."""
        return self._mean([b.predicted for b in self.bins])

    @property
    def observed(self) -> float:
        """How often that one won."""
        return self._mean([b.observed for b in self.bins])

    def _mean(self, values: list[float]) -> float:
        return float(np.average(values, weights=[b.pairs for b in self.bins])) if self.bins else float("nan")


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


def brier(margin: ArrayLike, p_chosen: ArrayLike) -> Array:
    """Squared distance of sigmoid(margin) from the label, in [0, 1]; a quarter says nothing."""
    m, p = _numbers(margin), np.asarray(p_chosen, np.float64)
    return np.asarray((special.expit(m) - p) ** 2)


def calibration(margin: ArrayLike, p_chosen: ArrayLike, bins: int = _BINS) -> Calibration:
    """Calibration of the answer that the model picks, in up to `bins` bins of as equal size as ties allow.

    A margin is chosen against rejected, so the labels alone all say "first". Looking at the picked answer undoes
    this: it is the same as letting every pair enter in both orders, over twice as many bins. Equal predictions share
    a bin, whatever the order of the pairs. Labels count as they are, a tie as one half.
    """
    m, p = _numbers(margin), np.asarray(p_chosen, np.float64)
    if not len(m):
        return Calibration(float("nan"), float("nan"), ())
    sure = special.expit(np.abs(m))
    won = np.where(m > 0, p, np.where(m < 0, 1.0 - p, 0.5))
    edges = np.quantile(sure, np.arange(1, bins) / bins)
    place = np.searchsorted(edges, sure)
    n, predicted, observed, spread = (
        np.bincount(place, weights=w, minlength=bins) for w in (np.ones(len(m)), sure, won, sure * (1.0 - sure))
    )
    # a sum of many right predictions is off by a normal deviate, whose mean size is sqrt(2 / pi) deviations
    chance = np.sqrt(2.0 / np.pi * spread)
    sums = zip(n.tolist(), predicted.tolist(), observed.tolist(), strict=True)
    found = [Bin(int(k), a / k, b / k, *_proportion(b, k)) for k, a, b in sums if k]
    return Calibration(float(np.abs(predicted - observed).sum() / len(m)), float(chance.sum() / len(m)), tuple(found))


def _proportion(won: float, n: float) -> tuple[float, float]:
    """95% interval of Clopper and Pearson. scipy's own takes whole wins only; these are its quantiles."""
    low, high = stats.beta.ppf([0.025, 0.975], [won, won + 1.0], [n - won + 1.0, n - won])
    return (float(low) if won > 0 else 0.0), (float(high) if won < n else 1.0)


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


def average(values: ArrayLike, users: ArrayLike) -> Average:
    """Macro mean: everyone counts alike, however much they judged (Accuracy-average of the paper, section C.3)."""
    sums, counts = per_user(values, users)
    n = len(sums)
    error = float(np.std(sums / counts, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Average(float((sums / counts).mean()) if n else float("nan"), error, n)


def macro(values: ArrayLike, users: ArrayLike, seed: int = 0) -> Estimate:
    """The same mean with its interval by bootstrap over users."""
    sums, counts = per_user(values, users)
    return ratio(sums / counts, np.ones(len(sums)), seed)


def worst_tenth(values: ArrayLike, users: ArrayLike, least: int = LEAST_JUDGED) -> float:
    """Mean of each one's mean over the tenth of people, rounded up, for whom it is lowest.

    People with fewer than `least` values are left out: chance alone puts them last. NaN where nobody has as many.
    Even so the worst of many noisy means lies below what these people would get next time: compare models by it.
    """
    sums, counts = per_user(values, users)
    means = np.sort((sums / counts)[counts >= least])
    return float(means[: -(-len(means) // 10)].mean()) if len(means) else float("nan")


def gap(majority: ArrayLike, minority: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of the first less mean of the second, one value per person, by bootstrap over the people of each."""
    a, b = np.asarray(majority, np.float64), np.asarray(minority, np.float64)
    value = float(a.mean() - b.mean()) if len(a) and len(b) else float("nan")
    if min(len(a), len(b)) < 2:
        return Estimate(value, float("-inf"), float("inf"))
    interval = stats.bootstrap(
        (a, b),
        lambda x, y, axis=-1: x.mean(axis) - y.mean(axis),
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def crossed(values: ArrayLike, seed: int = 0) -> list[Estimate]:
    """Means of values [k, m people, q prompts] over both, each with a 95% interval by drawing people and prompts anew.

    Both are drawn, each apart (Owen 2007, pigeonhole bootstrap), so that the interval is for other people and other
    prompts; it errs on the wide side. Of one person the prompts alone are drawn, of one prompt the people; of one of
    each the interval is the whole line. NaN, at the same places of each of the k, stands for what somebody did not
    ask: everybody's own mean counts alike.
    """
    v = np.asarray(values, np.float64)
    _, m, q = v.shape
    asked = ~np.isnan(v[0])
    means = np.nanmean(v, 2).mean(1)
    if m * q == 1:
        return [Estimate(float(x), float("-inf"), float("inf")) for x in means]
    draw = np.random.default_rng(seed)
    people, prompts = (draw.multinomial(size, np.full(size, 1.0 / size), _RESAMPLES) / size for size in (m, q))
    seen = prompts @ asked.T
    people = people * (seen > 0)  # whoever asked none of the drawn prompts
    people, seen = people / people.sum(1, keepdims=True).clip(1e-12), np.where(seen > 0, seen, 1.0)
    resampled = np.einsum("rm,kmq,rq->kr", people / seen, np.where(asked, v, 0.0), prompts, optimize=True)
    low, high = np.quantile(resampled[:, people.any(1)], [0.025, 0.975], axis=1)
    return [Estimate(*row) for row in np.stack([means, low, high], axis=1).tolist()]


def over_both(values: ArrayLike, users: ArrayLike, prompts: ArrayLike) -> Estimate:
    """Macro mean with the interval for other people and other prompts, where people share prompts; else as `macro`.

    People who answer to the same prompts err together, the more so where they get the same answers: what they have in
    common is no evidence that other prompts would show it too. As `macro` also where somebody has several values for a
    prompt.
    """
    v = np.asarray(values, np.float64)
    who, row = np.unique(np.asarray(users), return_inverse=True)
    asked, column = np.unique(np.asarray(prompts), return_inverse=True)
    if len(asked) == len(v) or len(set(zip(row.tolist(), column.tolist(), strict=True))) < len(v):
        return macro(v, users)
    table = np.full((1, len(who), len(asked)), np.nan)
    table[0, row, column] = v
    return crossed(table)[0]


def noise_ceiling(p: ArrayLike) -> float:
    """Best accuracy that any model can expect on labels drawn with probabilities p: the mean of max(p, 1 - p)."""
    q = np.asarray(p, np.float64)
    return float(np.maximum(q, 1.0 - q).mean())
