"""The text prior: a linear map from users' texts to the prior means of their offsets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prm.users.bayes.posterior import BLOCK, Posterior

MIN_TEXTS = 20  # minimum number of distinct texts of users with comparisons
PENALTIES = tuple(10.0 ** (k / 2.0) for k in range(-6, 7))
_MIN_STANDARD_ERRORS = 2.0  # by which a map must do better than none
_MAX_EXPLAINED = 0.9  # maximum share of the variance in a direction that texts explain
_EPSILON = 1e-6  # a smaller known share of a user or direction counts as none


@dataclass(frozen=True)
class TextMap:
    """o ~ N(weight phi, S - root root') for a user whose text is phi; S is the covariance of all users.

    Args:
        weight: [r, d].
        root: reduction of S by a text, [r, r].
        penalty: of the ridge regression.
        share: of the users' variance that texts explain, in units of S and estimated on held-out texts, in (0, 1].
    """

    weight: Tensor
    root: Tensor
    penalty: float
    share: float


@dataclass(frozen=True)
class TextStatistics:
    """Statistics per text of posteriors fitted without texts, for whitened offsets v ~ N(0, I), o = scale v.

    Of direction j of user u the share a_u b_j is known, with directions taken as independent: the posterior mean is
    a_u b_j (v + noise), with noise variance (1 - a_u b_j) / (a_u b_j). With v's variance added that is 1 / (a_u b_j),
    so the user has weight a_u b_j in a regression on phi.

    Args:
        sums: of the posterior means of the users of each text, [t, r].
        people: sum of their a, [t].
        directions: b, [r], 1 on average.
    """

    sums: Tensor
    people: Tensor
    directions: Tensor


def text_statistics(posterior: Posterior, texts: Tensor, n_texts: int, scale: Tensor) -> TextStatistics:
    """Sums over the users of each text; `texts` int64 [m]: each user's text, `scale` [r, r]: Cholesky factor of S."""
    means = torch.linalg.solve_triangular(scale, posterior.mean.T, upper=False).T
    size = max(1, BLOCK // posterior.factor[0].numel())
    share = torch.cat(
        [
            torch.linalg.solve_triangular(scale, part, upper=False).square().sum(2)
            for part in posterior.factor.split(size)
        ]
    )
    known = share.mean(1)
    text_weight = known.new_zeros(n_texts).index_add(0, texts, known)
    sums = means.new_zeros(n_texts, means.shape[1]).index_add(0, texts, means)
    return TextStatistics(sums, text_weight, (share.sum(0) / known.sum().clamp_min(_EPSILON)).clamp_min(_EPSILON))


def fit_text_map(phi: Tensor, texts: Tensor, posterior: Posterior, covariance: Tensor) -> TextMap | None:
    """The map with the best leave-one-text-out penalty; `None` if no map is better than none by two standard errors.

    Users with the same text are left out together, since a new user's text will be a new one.

    Args:
        phi: distinct texts, standardised, [t, d].
        texts: index of each user's text, int64 [m].
        posterior: of these users, under N(0, covariance).
    """
    scale = torch.linalg.cholesky(covariance.double())
    stats = text_statistics(Posterior(posterior.mean.double(), posterior.factor.double()), texts, len(phi), scale)
    used = stats.people > _EPSILON
    if int(used.sum()) < MIN_TEXTS:
        return None
    phi, stats = phi.double()[used], TextStatistics(stats.sums[used], stats.people[used], stats.directions)
    tried = {penalty: (weight, gain_of(stats, left_out)) for penalty, weight, left_out in ridges(phi, stats, PENALTIES)}
    best = max(tried, key=lambda penalty: float(tried[penalty][1].sum()))
    weight, gain = tried[best]
    if float(gain.sum()) <= _MIN_STANDARD_ERRORS * float(gain.square().sum().sqrt()):
        return None
    share = float(gain.sum() / (stats.people.sum() * stats.directions.sum()))
    root = scale @ explained(weight @ phi.T, stats.people, share)
    return TextMap((scale @ weight).to(covariance), root.to(covariance), best, min(share, 1.0))


def ridges(phi: Tensor, stats: TextStatistics, penalties: Sequence[float]) -> Iterator[tuple[float, Tensor, Tensor]]:
    """Yield (penalty; map from phi to v, [r, d]; leave-one-out predictions of each text, [t, r]) for each penalty.

    The map minimises sum_t,j a_t b_j (y_tj - <w_j, phi_t>)^2 + penalty d |w|^2, with y_tj = sum_tj / (a_t b_j).
    """
    scaled, a, b = phi / phi.shape[1] ** 0.5, stats.people.sqrt()[:, None], stats.directions
    u, s, v = torch.linalg.svd(a * scaled, full_matrices=False)
    s, projected = s[:, None], u.T @ (stats.sums / a)
    y = stats.sums / (a.square() * b)
    for penalty in penalties:
        shrunk = s / (b * s.square() + penalty)
        weight = (v.T @ (shrunk * projected)).T
        leverage = u.square() @ (s * b * shrunk)  # of each text's y on its own fitted value
        left_out = y - (y - scaled @ weight.T) / (1.0 - leverage).clamp_min(_EPSILON)
        yield penalty, weight / phi.shape[1] ** 0.5, left_out


def gain_of(stats: TextStatistics, left_out: Tensor) -> Tensor:
    """Squared error of predicting v = 0 minus that of the map's predictions, per text, [t]; noise cancels."""
    weight = stats.people[:, None] * stats.directions
    return (2.0 * stats.sums * left_out - weight * left_out.square()).sum(1)


def explained(expected: Tensor, weights: Tensor, share: float) -> Tensor:
    """Root [r, r] of the reduction of v's covariance I by texts, from their predictions `expected` [r, t].

    By the law of total variance it is the covariance of the predictions, scaled down to the share of I's trace that
    held-out texts confirm, `share`, and limited to nine tenths in each direction.
    """
    spread = (expected * weights) @ expected.T / weights.sum()
    total = float(spread.diagonal().sum())
    values, vectors = torch.linalg.eigh(spread * min(1.0, share * len(spread) / max(total, _EPSILON)))
    return vectors * values.clamp(0.0, _MAX_EXPLAINED).sqrt()
