"""How far people are from the average, learnt from everybody."""

import torch
from torch import Tensor

from prm.bayes.posterior import SETTLED, Judgements, Posterior, Prior, fit_posterior

_ROUNDS = 60
_MOST = 25.0  # variance of an average pair's logit among people, beyond which more says nothing: they are all decided


def population(covariance: Tensor) -> Prior:
    """The prior of people of whom nothing is known beforehand: N(0, covariance)."""
    return Prior(torch.zeros_like(covariance[0]), covariance, covariance)


def fit_prior(judgements: Judgements, n_people: int, variance: float = 1.0) -> tuple[Prior, Posterior]:
    """S by EM, from N(0, variance I) on, and everybody's posterior under it.

    Few people cannot tell all r (r + 1) / 2 numbers of S. Its off-diagonal counts for as much as there are people to
    that many numbers, and each direction's own variance is drawn towards the mean of all by ten people's worth. People
    who never contradict themselves would make S grow for ever: it ends where an average pair's logit deviates by 5.
    """
    z = judgements.differences()
    moment = z.T @ z / len(z)
    prior = population(variance * torch.eye(z.shape[1]).to(z))
    judged = torch.bincount(judgements.people, minlength=n_people) > 0
    posterior = fit_posterior(judgements, prior, n_people)
    for _ in range(_ROUNDS):
        found = _maximised(posterior.mean[judged], posterior.covariance[judged])
        found = found / max(1.0, float((found * moment).sum()) / _MOST)
        moved = float((found - prior.covariance).norm() / prior.covariance.norm())
        prior = population(found)
        posterior = fit_posterior(judgements, prior, n_people, posterior, rounds=2)
        if moved < SETTLED:
            break
    return prior, fit_posterior(judgements, prior, n_people, posterior)


def _maximised(means: Tensor, covariances: Tensor) -> Tensor:
    """The M-step: S [r, r] from the posteriors of everybody who has judged."""
    m, r = means.shape
    scatter = covariances.sum(0) + means.T @ means
    own = scatter.diagonal()
    variances = (own + 10.0 * own.mean() / m) / (m + 10.0)
    full = m / (m + 0.5 * r * (r + 1))
    return full * scatter / m + (1.0 - full) * torch.diag(variances)
