"""How far people are from the average, learnt from everybody."""

import torch
from torch import Tensor

from prm.bayes.posterior import SETTLED, Judgements, Posterior, Prior, fit_posterior

_ROUNDS = 60


def fit_prior(judgements: Judgements, n_people: int, variance: float = 1.0) -> tuple[Prior, Posterior]:
    """S by EM, from N(0, variance I) on, and everybody's posterior under it.

    Few people cannot tell all r (r + 1) / 2 numbers of S. Its off-diagonal counts for as much as there are people to
    that many numbers, and each direction's own variance is drawn towards the mean of all by ten people's worth.
    """
    r, like = judgements.texts.shape[1], judgements.texts
    prior = Prior(torch.zeros(r).to(like), variance * torch.eye(r).to(like))
    judged = torch.bincount(judgements.people, minlength=n_people) > 0
    posterior = fit_posterior(judgements, prior, n_people)
    for _ in range(_ROUNDS):
        found = _maximised(posterior.mean[judged], posterior.covariance[judged])
        moved = float((found.covariance - prior.covariance).norm() / prior.covariance.norm())
        prior, posterior = found, fit_posterior(judgements, found, n_people, posterior, rounds=2)
        if moved < SETTLED:
            break
    return prior, fit_posterior(judgements, prior, n_people, posterior)


def _maximised(means: Tensor, covariances: Tensor) -> Prior:
    """The M-step, from the posteriors of everybody who has judged."""
    m, r = means.shape
    scatter = covariances.sum(0) + means.T @ means
    own = scatter.diagonal()
    variances = (own + 10.0 * own.mean() / m) / (m + 10.0)
    full = m / (m + 0.5 * r * (r + 1))
    return Prior(torch.zeros_like(own), full * scatter / m + (1.0 - full) * torch.diag(variances))
