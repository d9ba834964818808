"""The covariance of users' offsets, estimated from all users by EM."""

import math

import torch
from torch import Tensor

from prm.users.bayes.posterior import PosteriorData, Prior, iter_posteriors

_ROUNDS = 60
_TOLERANCE = 0.01  # relative change of S, far below its standard error
_MAX_VARIANCE = 25.0  # of an average pair's logit across users: above it every user is certain of every pair
_MIN_VARIANCE = 1e-4  # below it all users are alike, and EM would halve it for ever
_MAX_LOG_STEP = 1.5  # maximum change of a variance's logarithm in one step


def population(covariance: Tensor) -> Prior:
    """The prior N(0, covariance) of all users."""
    return Prior(torch.zeros_like(covariance[0]), covariance, covariance)


def fit_prior(comparisons: PosteriorData, n_users: int, variance: float = 1.0) -> Prior:
    """Estimate S by EM, starting from variance I.

    Few users do not determine all r (r + 1) / 2 parameters of S: each direction's variance is shrunk towards the mean
    of all with the weight of ten users, and S towards its diagonal with the weight of ten users per direction. Users
    who never contradict themselves would make S grow for ever: an average pair's logit is limited to a standard
    deviation of 5.
    """
    em = _EM(comparisons, n_users)
    covariance = variance * torch.eye(comparisons.texts.shape[1]).to(comparisons.texts)
    for _ in range(_ROUNDS // 2):
        first = em.step(covariance)
        second = em.step(first)
        if float((second - first).norm() / first.norm()) < _TOLERANCE:
            return population(second)
        covariance = em.bounded(_extrapolated(covariance, first, second))
    return population(second)


class _EM:
    """EM iterations, each of which starts from the previous one's user means."""

    def __init__(self, comparisons: PosteriorData, n_users: int):
        z = comparisons.differences()
        self.comparisons, self.n_users = comparisons, n_users
        self.moment = z.T @ z / len(z)
        self.has_comparisons = torch.bincount(comparisons.people, minlength=n_users) > 0
        self.means = torch.zeros(n_users, z.shape[1]).to(z)
        self.spread: Tensor | None = None  # variance of each comparison's logit

    def step(self, covariance: Tensor) -> Tensor:
        """The next S [r, r]."""
        start = None if self.spread is None else (self.means, self.spread)
        covariance_sum, n_known = torch.zeros_like(covariance), 0.0  # reductions of S: their sum and total trace
        self.spread = torch.empty_like(self.comparisons.margin)
        prior, rounds = population(covariance), 8 if start is None else 2
        for users, part in iter_posteriors(self.comparisons, prior, self.n_users, start, rounds):
            self.means[users] = part.mean
            index, real = part.compared
            self.spread[index[real]] = part.variance[real]
            known = torch.eye(part.unknown.shape[1]).to(covariance) - part.unknown
            covariance_sum += (part.root @ known).transpose(0, 1).flatten(1) @ part.root.transpose(0, 1).flatten(1).T
            n_known += float(known.diagonal(dim1=1, dim2=2).sum())
        means = self.means[self.has_comparisons]
        return self.bounded(_m_step(means, covariance_sum, covariance) * _speed_up(means, n_known, covariance))

    def bounded(self, covariance: Tensor) -> Tensor:
        """S, scaled so that the variance of an average pair's logit is within its limits."""
        size = float((covariance * self.moment).sum())
        return covariance * (max(_MIN_VARIANCE, size) / size) / max(1.0, size / _MAX_VARIANCE)


def _extrapolated(start: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Extrapolate two iterations (SQUAREM, Varadhan and Roland 2008) on the logarithms of the variances.

    EM converges slowly, in hundreds of iterations, with few comparisons per user.
    """
    logs = [each.diagonal().log() for each in (start, first, second)]
    step, bend = logs[1] - logs[0], logs[2] - 2.0 * logs[1] + logs[0]
    length = max(1.0, float(step.norm() / bend.norm().clamp_min(1e-12)))
    target = logs[0] + 2.0 * length * step + length**2 * bend
    scale = (0.5 * (target - logs[2]).clamp(-_MAX_LOG_STEP, _MAX_LOG_STEP)).exp()
    return scale[:, None] * second * scale


def _m_step(means: Tensor, covariance_sum: Tensor, covariance: Tensor) -> Tensor:
    """The M-step: S [r, r] from the users' means [m, r] and the sum of the reductions of their covariances."""
    m, r = means.shape
    scatter = m * covariance - covariance_sum + means.T @ means
    diagonal = scatter.diagonal()
    variances = (diagonal + 10.0 * diagonal.mean() / m) / (m + 10.0)
    full = m / (m + 10.0 * r)
    return full * scatter / m + (1.0 - full) * torch.diag(variances)


def _speed_up(means: Tensor, n_known: float, covariance: Tensor) -> float:
    """The factor that gives the M-step's S the size of MacKay's (1992) fixed-point update.

    EM converges slowly with few comparisons per user. Both updates have the same fixed point: there, the squared means
    of the users, in units of the prior, sum to `n_known`, the effective number of known parameters.
    """
    m, r = means.shape
    size = float(torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), means.T, upper=False).square().sum())
    slow = (m * r - n_known + size) / (m * r)
    fast = size / max(n_known, 1e-6)
    return min(max(fast, math.exp(-_MAX_LOG_STEP)), math.exp(_MAX_LOG_STEP)) / slow
