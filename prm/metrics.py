"""How well margins predict labels: metrics per pair and per user, with confidence intervals. Arrays in, numbers out.

Functions import scipy, which takes longer than all else that a command needs to read a log.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prm.errors import PrmError

Array = NDArray[np.float64]

MIN_COMPARISONS = 10  # with fewer comparisons, a user's accuracy is noise
FEW_PEOPLE = 5  # with fewer users, an interval over users is almost meaningless
_RESAMPLES, _GROUPS, _BINS = 2000, 5000, 10


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Average:
    """A mean over users of their means, its standard error (NaN for one user), and the number of users."""

    value: float
    error: float
    people: int


@dataclass(frozen=True)
class Bin:
    """Pairs of about equal confidence: the model's mean P(picked response), and how often that response won.

    `low` and `high` are the 95% interval of `observed` by Clopper and Pearson; a tie counts as half a win. It treats
    pairs as independent, so it is too short for many pairs of few users or prompts.
    """

    pairs: int
    predicted: float
    observed: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """How far predicted probabilities are from observed frequencies.

    Args:
        error: expected calibration error: mean over pairs of their bin's |predicted - observed|, in [0, 0.5].
        by_chance: its expectation, on as many pairs, for a perfectly calibrated model, which is above 0.
        bins: of equal numbers of pairs, from the lowest to the highest confidence.
    """

    error: float
    by_chance: float
    bins: tuple[Bin, ...]

    @property
    def predicted(self) -> float:
        """Mean P(picked response) over pairs."""
        return self._mean([b.predicted for b in self.bins])

    @property
    def observed(self) -> float:
        """Share of pairs in which the picked response won."""
        return self._mean([b.observed for b in self.bins])

    def _mean(self, values: list[float]) -> float:
        return float(np.average(values, weights=[b.pairs for b in self.bins])) if self.bins else float("nan")


def correct(margin: ArrayLike, p_chosen: ArrayLike) -> Array:
    """1 if the chosen response scores higher, 0 if lower, 0.5 for a tied prediction; NaN for a tied label.

    Raises `PrmError` for a NaN margin.
    """
    m, p = _numbers(margin), np.asarray(p_chosen, np.float64)
    right: Array = np.where(m > 0, 1.0, np.where(m == 0, 0.5, 0.0))
    return np.where(p == 0.5, np.nan, right)


def nll(margin: ArrayLike, p_chosen: ArrayLike) -> Array:
    """Log loss of the label under sigmoid(margin), in nats. Raises `PrmError` for a NaN margin."""
    m, p = _numbers(margin), np.asarray(p_chosen, np.float64)
    return np.asarray(p * np.logaddexp(0.0, -m) + (1.0 - p) * np.logaddexp(0.0, m))


def brier(margin: ArrayLike, p_chosen: ArrayLike) -> Array:
    """Brier score: squared distance of sigmoid(margin) from the label, in [0, 1]; 0.25 for a margin of 0."""
    from scipy import special

    m, p = _numbers(margin), np.asarray(p_chosen, np.float64)
    return np.asarray((special.expit(m) - p) ** 2)


def calibration(margin: ArrayLike, p_chosen: ArrayLike, bins: int = _BINS) -> Calibration:
    """Calibration for the response that the model picks, in up to `bins` bins of as equal size as ties allow.

    Margins are of chosen against rejected, so every label favours the first response. Using the picked response
    removes this bias: it is the same as entering every pair in both orders, with twice as many bins. Equal predictions
    share a bin, whatever the order of the pairs. A tied label counts as one half.
    """
    confidence, won, bin_of_pair = picked(margin, p_chosen, bins)
    if not len(won):
        return Calibration(float("nan"), float("nan"), ())
    n, predicted, observed, spread = (
        np.bincount(bin_of_pair, weights=w, minlength=bins)
        for w in (np.ones(len(won)), confidence, won, confidence * (1.0 - confidence))
    )
    # the deviation of a sum of calibrated predictions is about normal, with mean size sqrt(2 / pi) standard deviations
    chance = np.sqrt(2.0 / np.pi * spread)
    sums = zip(n.tolist(), predicted.tolist(), observed.tolist(), strict=True)
    result = [Bin(int(k), a / k, b / k, *_proportion(b, k)) for k, a, b in sums if k]
    return Calibration(
        float(np.abs(predicted - observed).sum() / len(won)), float(chance.sum() / len(won)), tuple(result)
    )


def picked(margin: ArrayLike, p_chosen: ArrayLike, bins: int = _BINS) -> tuple[Array, Array, NDArray[np.int64]]:
    """P(picked response), how often that response won (1, 0 or between), and the bin of each pair, [n] each."""
    from scipy import special

    m, p = _numbers(margin), np.asarray(p_chosen, np.float64)
    confidence = np.asarray(special.expit(np.abs(m)), np.float64)
    won = np.where(m > 0, p, np.where(m < 0, 1.0 - p, 0.5))
    edges = np.quantile(confidence, np.arange(1, bins) / bins) if len(m) else np.zeros(0)
    return confidence, won, np.searchsorted(edges, confidence)


def _proportion(won: float, n: float) -> tuple[float, float]:
    """95% interval of Clopper and Pearson; scipy's function does not allow half wins, so this uses its quantiles."""
    from scipy import stats

    low, high = stats.beta.ppf([0.025, 0.975], [won, won + 1.0], [n - won + 1.0, n - won])
    return (float(low) if won > 0 else 0.0), (float(high) if won < n else 1.0)


def _numbers(margin: ArrayLike) -> Array:
    m = np.asarray(margin, np.float64)
    if broken := int(np.isnan(m).sum()):  # later, NaN means a tied label and would be left out
        raise PrmError(f"{broken} of {m.size} rewards are not numbers (NaN): the model is broken, or diverged")
    return m


def estimate(values: ArrayLike, users: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of the values that are not NaN, with a 95% percentile interval by bootstrap over users.

    It resamples users, because comparisons of one user are not independent. With one user the interval is infinite.
    """
    return ratio(*per_user(values, users), seed)


def ratio(sums: ArrayLike, counts: ArrayLike, seed: int = 0) -> Estimate:
    """Sum of `sums` over sum of `counts`, one of each per group, with a 95% interval by bootstrap over groups.

    More than 5,000 groups are merged at random into 5,000 blocks, which leaves the variance about the same: a bootstrap
    over a million groups would take minutes.
    """
    from scipy import stats

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
    """(sums, counts) of the values that are not NaN, for each user with any, sorted by user."""
    v, names = np.asarray(values, np.float64), np.asarray(users)
    kept = ~np.isnan(v)
    _, index = np.unique(names[kept], return_inverse=True)
    sums = np.bincount(index, weights=v[kept]).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def average(values: ArrayLike, users: ArrayLike) -> Average:
    """Macro mean: all users have equal weight (Accuracy-average of the paper, section C.3)."""
    sums, counts = per_user(values, users)
    n = len(sums)
    error = float(np.std(sums / counts, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Average(float((sums / counts).mean()) if n else float("nan"), error, n)


def macro(values: ArrayLike, users: ArrayLike, seed: int = 0) -> Estimate:
    """Macro mean with a 95% interval by bootstrap over users."""
    sums, counts = per_user(values, users)
    return ratio(sums / counts, np.ones(len(sums)), seed)


def worst_tenth(values: ArrayLike, users: ArrayLike, least: int = MIN_COMPARISONS) -> float:
    """Mean of the users' means over the worst tenth of users (rounded up).

    Users with fewer than `least` values are left out, because chance puts them last. NaN if no user is left. Selection
    biases the value downwards, so use it only to compare models.
    """
    sums, counts = per_user(values, users)
    means = np.sort((sums / counts)[counts >= least])
    return float(means[: -(-len(means) // 10)].mean()) if len(means) else float("nan")


def gap(majority: ArrayLike, minority: ArrayLike, seed: int = 0) -> Estimate:
    """Difference of the two groups' means, one value per user, with a 95% interval by bootstrap over users."""
    from scipy import stats

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
    """Means of values [k, m users, q prompts] over users and prompts, each with a 95% interval by bootstrap over both.

    Users and prompts are resampled independently (Owen 2007, pigeonhole bootstrap), so the interval holds for other
    users and other prompts; it is conservative. With one user only prompts are resampled, with one prompt only users;
    with one of each the interval is infinite. NaN, at the same positions for each of the k, marks prompts that a user
    did not have; all users' means have equal weight.
    """
    return [_interval(*row) for row in zip(*_over_both(values, seed), strict=True)]


def crossed_share(parts: ArrayLike, wholes: ArrayLike, seed: int = 0) -> list[Estimate | None]:
    """Mean of each part over the mean of its whole, both [k, m users, q prompts], with intervals as of `crossed`.

    A ratio of means, not a mean of ratios, so that prompts where the whole is small do not decide. Resamples in which
    the whole is 0 are left out. `None` where the whole is not finite or not above 0 in the mean: there is no share.
    """
    p, w = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    means, resampled = _over_both(np.concatenate([p, w]), seed)
    return [
        _share(*pair)
        for pair in zip(means[: len(p)], means[len(p) :], resampled[: len(p)], resampled[len(p) :], strict=True)
    ]


def _share(part: float, whole: float, parts: Array, wholes: Array) -> Estimate | None:
    """A share of means, and its interval by those of the resamples."""
    if not (np.isfinite([part, whole]).all() and whole > 0.0):
        return None
    return _interval(part / whole, parts[wholes > 0.0] / wholes[wholes > 0.0])


def _over_both(values: ArrayLike, seed: int) -> tuple[Array, Array]:
    """(means [k] of values [k, m, q], their bootstrap over users and prompts [k, resamples]: none of a single cell)."""
    v = np.asarray(values, np.float64)
    k, m, q = v.shape
    present = ~np.isnan(v[0])
    means = np.nanmean(v, 2).mean(1)
    if m * q == 1:
        return means, np.zeros((k, 0))
    draw = np.random.default_rng(seed)
    user_weights, prompt_weights = (
        draw.multinomial(size, np.full(size, 1.0 / size), _RESAMPLES) / size for size in (m, q)
    )
    seen = prompt_weights @ present.T
    user_weights = user_weights * (seen > 0)  # without users who have none of the drawn prompts
    user_weights, seen = user_weights / user_weights.sum(1, keepdims=True).clip(1e-12), np.where(seen > 0, seen, 1.0)
    with np.errstate(invalid="ignore"):  # infinite values times 0
        resampled = np.einsum(
            "rm,kmq,rq->kr", user_weights / seen, np.where(present, v, 0.0), prompt_weights, optimize=True
        )
    return means, resampled[:, user_weights.any(1)]


def _interval(mean: float, resampled: Array) -> Estimate:
    """A mean with the 95% percentile interval of its resamples [r]; infinite if there are none, or the mean is."""
    known = len(resampled) > 0 and np.isfinite(mean)
    low, high = np.quantile(resampled, [0.025, 0.975]) if known else (-np.inf, np.inf)
    return Estimate(float(mean), float(low), float(high))


def over_both(values: ArrayLike, users: ArrayLike, prompts: ArrayLike) -> Estimate:
    """Macro mean with an interval for other users and other prompts if users share prompts; otherwise as `macro`.

    Errors of users with the same prompts are correlated, more so if the responses are the same, so a bootstrap over
    users alone would be too narrow. Also as `macro` if a user has several values for a prompt.
    """
    v = np.asarray(values, np.float64)
    table = _by_user_and_prompt(v[None], users, prompts)
    return macro(v, users) if table is None else crossed(table)[0]


def share_over_both(parts: ArrayLike, whole: ArrayLike, users: ArrayLike, prompts: ArrayLike) -> list[Estimate | None]:
    """As `crossed_share`, of parts [k, n] of one whole [n]; intervals over users and prompts as of `over_both`."""
    values = np.vstack([np.asarray(parts, np.float64), np.asarray(whole, np.float64)])
    table = _by_user_and_prompt(values, users, prompts)
    if table is None:  # one mean for each user, as if all had one prompt: only users are resampled
        row = np.unique(np.asarray(users), return_inverse=True)[1]
        table = np.stack([np.bincount(row, v) for v in values])[:, :, None] / np.bincount(row)[:, None]
    return crossed_share(table[:-1], np.broadcast_to(table[-1], table[:-1].shape))


def _by_user_and_prompt(values: Array, users: ArrayLike, prompts: ArrayLike) -> Array | None:
    """Values [k, n] as [k, users, prompts], NaN where there is none; `None` if no two users share a prompt, or a user
    has several values for one."""
    user_ids, row = np.unique(np.asarray(users), return_inverse=True)
    prompt_ids, column = np.unique(np.asarray(prompts), return_inverse=True)
    n = values.shape[1]
    if len(prompt_ids) == n or len(set(zip(row.tolist(), column.tolist(), strict=True))) < n:
        return None
    table = np.full((len(values), len(user_ids), len(prompt_ids)), np.nan)
    table[:, row, column] = values
    return table


def noise_ceiling(p: ArrayLike) -> float:
    """Best expected accuracy of any model on labels drawn with probabilities p: the mean of max(p, 1 - p)."""
    q = np.asarray(p, np.float64)
    return float(np.maximum(q, 1.0 - q).mean())


def slopes_within(x: ArrayLike, y: ArrayLike, groups: ArrayLike) -> Array:
    """Least-squares weights [k, m] of y [n, m] on x [n, k], both less their means over each row's group.

    Args:
        groups: of each row, integers from 0, [n].
    """
    group = np.asarray(groups, np.int64)

    def centred(values: ArrayLike) -> Array:
        rows = np.asarray(values, np.float64)
        sums = np.zeros((int(group.max()) + 1, rows.shape[1]))
        np.add.at(sums, group, rows)
        return np.asarray(rows - (sums / np.bincount(group).clip(1)[:, None])[group])

    return np.asarray(np.linalg.lstsq(centred(x), centred(y), rcond=None)[0], np.float64)
