"""What people say of themselves as the mean of their prior: a linear map from texts to offsets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prm.users.bayes.posterior import BLOCK, Posterior

FEWEST = 20  # distinct texts of people who judged, below which nothing can be learnt from them
PENALTIES = tuple(10.0 ** (k / 2.0) for k in range(-6, 7))
_SURE = 2.0  # standard errors by which a map must do better than none
_MOST = 0.9  # share of the variance in a direction that texts may explain
_LEAST = 1e-6  # share known of a person or direction, below which it is as good as none


@dataclass(frozen=True)
class TextMap:
    """o ~ N(weight phi, S - root root') for a person whose text is phi; S is the covariance of all people.

    Args:
        weight: [r, d].
        root: what a text takes away from S, [r, r].
        penalty: of the ridge regression.
        share: of people's variance that texts explain, in units of S and by texts left out, in (0, 1].
    """

    weight: Tensor
    root: Tensor
    penalty: float
    share: float


@dataclass(frozen=True)
class Known:
    """What posteriors that know nothing of texts tell of offsets v ~ N(0, I), o = scale v, text by text.

    Of direction j of person u the share a_u b_j is known, less the coupling of directions: the mean is then
    a_u b_j (v + noise), the noise's variance (1 - a_u b_j) / (a_u b_j). With v's own that is 1 / (a_u b_j), so in a
    regression on phi the person counts for a_u b_j.

    Args:
        sums: of the means of the people of each text, [t, r].
        people: sum of their a, [t].
        directions: b, [r], 1 on average.
    """

    sums: Tensor
    people: Tensor
    directions: Tensor


def known_of(posterior: Posterior, texts: Tensor, n_texts: int, scale: Tensor) -> Known:
    """Sums over the people of each text; `texts` int64 [m] says whose is which, `scale` [r, r] is Cholesky's of S."""
    means = torch.linalg.solve_triangular(scale, posterior.mean.T, upper=False).T
    size = max(1, BLOCK // posterior.factor[0].numel())
    share = torch.cat(
        [
            torch.linalg.solve_triangular(scale, part, upper=False).square().sum(2)
            for part in posterior.factor.split(size)
        ]
    )
    own = share.mean(1)
    people = own.new_zeros(n_texts).index_add(0, texts, own)
    sums = means.new_zeros(n_texts, means.shape[1]).index_add(0, texts, means)
    return Known(sums, people, (share.sum(0) / own.sum().clamp_min(_LEAST)).clamp_min(_LEAST))


def fit_text_map(phi: Tensor, texts: Tensor, posterior: Posterior, covariance: Tensor) -> TextMap | None:
    """The map whose penalty does best for texts left out, one at a time; `None` where none surely beats having none.

    People with the same text are left out together: they are one draw of what strangers will say.

    Args:
        phi: distinct texts, standardised, [t, d].
        texts: place of each person's text, int64 [m].
        posterior: of these people, under N(0, covariance).
    """
    scale = torch.linalg.cholesky(covariance.double())
    known = known_of(Posterior(posterior.mean.double(), posterior.factor.double()), texts, len(phi), scale)
    informative = known.people > _LEAST
    if int(informative.sum()) < FEWEST:
        return None
    phi, known = phi.double()[informative], Known(known.sums[informative], known.people[informative], known.directions)
    tried = {penalty: (weight, gain_of(known, left_out)) for penalty, weight, left_out in ridges(phi, known, PENALTIES)}
    best = max(tried, key=lambda penalty: float(tried[penalty][1].sum()))
    weight, gain = tried[best]
    if float(gain.sum()) <= _SURE * float(gain.square().sum().sqrt()):
        return None
    share = float(gain.sum() / (known.people.sum() * known.directions.sum()))
    root = scale @ explained(weight @ phi.T, known.people, share)
    return TextMap((scale @ weight).to(covariance), root.to(covariance), best, min(share, 1.0))


def ridges(phi: Tensor, known: Known, penalties: Sequence[float]) -> Iterator[tuple[float, Tensor, Tensor]]:
    """(penalty; map from phi to v, [r, d]; what it says of each text learnt from all others, [t, r]), of each.

    The map minimises sum_t,j a_t b_j (y_tj - <w_j, phi_t>)^2 + penalty d |w|^2, with y_tj = sum_tj / (a_t b_j).
    """
    each, a, b = phi / phi.shape[1] ** 0.5, known.people.sqrt()[:, None], known.directions
    u, s, v = torch.linalg.svd(a * each, full_matrices=False)
    s, pull = s[:, None], u.T @ (known.sums / a)
    y = known.sums / (a.square() * b)
    for penalty in penalties:
        shrunk = s / (b * s.square() + penalty)
        weight = (v.T @ (shrunk * pull)).T
        lever = u.square() @ (s * b * shrunk)  # how much a text's own y moves what is fitted for it
        left_out = y - (y - each @ weight.T) / (1.0 - lever).clamp_min(_LEAST)
        yield penalty, weight / phi.shape[1] ** 0.5, left_out


def gain_of(known: Known, left_out: Tensor) -> Tensor:
    """Squared error of saying nothing (v = 0) less that of what the map says, per text, [t]; noise cancels."""
    weight = known.people[:, None] * known.directions
    return (2.0 * known.sums * left_out - weight * left_out.square()).sum(1)


def explained(expected: Tensor, people: Tensor, share: float) -> Tensor:
    """Root [r, r] of what texts take away from v's covariance I: that of what they make expected, [r, t].

    By the law of total variance; of it as much as texts left out confirm, `share` of I's trace, and of no direction
    more than nine tenths.
    """
    spread = (expected * people) @ expected.T / people.sum()
    total = float(spread.diagonal().sum())
    values, vectors = torch.linalg.eigh(spread * min(1.0, share * len(spread) / max(total, _LEAST)))
    return vectors * values.clamp(0.0, _MOST).sqrt()
