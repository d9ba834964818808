"""How far people are from the average, learnt from everybody."""

import math

import torch
from torch import Tensor

from prm.users.bayes.posterior import PosteriorData, Prior, settled

_ROUNDS = 60
_SETTLED = 0.01  # relative change of S: far less than people tell of it
_MOST = 25.0  # variance of an average pair's logit among people, beyond which more says nothing: they are all decided
_ALIKE = 1e-4  # and the variance below which people are all alike: EM would halve it for ever
_FASTEST = 1.5  # change of a logarithm of a variance that is taken at once


def population(covariance: Tensor) -> Prior:
    """The prior of people of whom nothing is known beforehand: N(0, covariance)."""
    return Prior(torch.zeros_like(covariance[0]), covariance, covariance)


def fit_prior(judgements: PosteriorData, n_people: int, variance: float = 1.0) -> Prior:
    """S by EM, from N(0, variance I) on.

    Few people cannot tell all r (r + 1) / 2 numbers of S: each direction's own variance is drawn towards the mean of
    all by ten people's worth, and S as a whole towards its diagonal by ten people's worth for every direction. People
    who never contradict themselves would make S grow for ever: it ends where an average pair's logit deviates by 5.
    """
    rounds = _Rounds(judgements, n_people)
    covariance = variance * torch.eye(judgements.texts.shape[1]).to(judgements.texts)
    for _ in range(_ROUNDS // 2):
        first = rounds.step(covariance)
        second = rounds.step(first)
        if float((second - first).norm() / first.norm()) < _SETTLED:
            return population(second)
        covariance = rounds.bounded(_extrapolated(covariance, first, second))
    return population(second)


class _Rounds:
    """Rounds of EM, each from where the last one left people."""

    def __init__(self, judgements: PosteriorData, n_people: int):
        z = judgements.differences()
        self.judgements, self.n_people = judgements, n_people
        self.moment = z.T @ z / len(z)
        self.judged = torch.bincount(judgements.people, minlength=n_people) > 0
        self.means = torch.zeros(n_people, z.shape[1]).to(z)
        self.spread: Tensor | None = None  # of each comparison's logit

    def step(self, covariance: Tensor) -> Tensor:
        """The next S [r, r]."""
        start = None if self.spread is None else (self.means, self.spread)
        covariance_sum, known = (
            torch.zeros_like(covariance),
            0.0,
        )  # of the covariances of all, and how many numbers that is
        self.spread = torch.empty_like(self.judgements.margin)
        prior, rounds = population(covariance), 8 if start is None else 2
        for people, part in settled(self.judgements, prior, self.n_people, start, rounds):
            self.means[people] = part.mean
            places, real = part.judged
            self.spread[places[real]] = part.variance[real]
            gone = torch.eye(part.unknown.shape[1]).to(covariance) - part.unknown
            covariance_sum += (part.root @ gone).transpose(0, 1).flatten(1) @ part.root.transpose(0, 1).flatten(1).T
            known += float(gone.diagonal(dim1=1, dim2=2).sum())
        means = self.means[self.judged]
        return self.bounded(_maximised(means, covariance_sum, covariance) * _hastened(means, known, covariance))

    def bounded(self, covariance: Tensor) -> Tensor:
        """S, scaled to where an average pair's logit may vary by so much."""
        size = float((covariance * self.moment).sum())
        return covariance * (max(_ALIKE, size) / size) / max(1.0, size / _MOST)


def _extrapolated(start: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Where two rounds are heading (SQUAREM, Varadhan and Roland 2008), on the logarithms of the variances.

    EM creeps where little is known of each person; what it has not found out after two rounds it would find out after
    hundreds.
    """
    logs = [each.diagonal().log() for each in (start, first, second)]
    step, bend = logs[1] - logs[0], logs[2] - 2.0 * logs[1] + logs[0]
    length = max(1.0, float(step.norm() / bend.norm().clamp_min(1e-12)))
    target = logs[0] + 2.0 * length * step + length**2 * bend
    scale = (0.5 * (target - logs[2]).clamp(-_FASTEST, _FASTEST)).exp()
    return scale[:, None] * second * scale


def _maximised(means: Tensor, covariance_sum: Tensor, covariance: Tensor) -> Tensor:
    """The M-step: S [r, r] from means [m, r] and the sum of what judgements took away from people's covariances."""
    m, r = means.shape
    scatter = m * covariance - covariance_sum + means.T @ means
    own = scatter.diagonal()
    variances = (own + 10.0 * own.mean() / m) / (m + 10.0)
    full = m / (m + 10.0 * r)
    return full * scatter / m + (1.0 - full) * torch.diag(variances)


def _hastened(means: Tensor, known: float, covariance: Tensor) -> float:
    """What the M-step's S is to be multiplied by so that its size is that of MacKay's (1992) fixed point.

    EM creeps where little is known of each person. Both have the same fixed point: there, people's means, in units of
    the prior, are as large as the `known` numbers of them are many.
    """
    m, r = means.shape
    size = float(torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), means.T, upper=False).square().sum())
    slow = (m * r - known + size) / (m * r)
    fast = size / max(known, 1e-6)
    return min(max(fast, math.exp(-_FASTEST)), math.exp(_FASTEST)) / slow
