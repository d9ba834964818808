"""Posteriors with all of their columns: an independent form of what `prm.users.bayes_model` stores in fewer."""

import torch
from torch import Tensor

from prm.users.bayes.posterior import Posterior, PosteriorData, Prior, iter_posteriors


def fit_posterior(comparisons: PosteriorData, prior: Prior, n_users: int) -> Posterior:
    """All users' posteriors; factors [m, r, r]."""
    r = len(prior.covariance)
    mean, factor = prior.mean.expand(n_users, -1).clone(), torch.zeros(n_users, r, r)
    for users, block in iter_posteriors(comparisons, prior, n_users):
        mean[users] = block.mean
        factor[users, :, : block.factor.shape[2]] = block.factor
    return Posterior(mean, factor)


def covariances(posterior: Posterior, covariance: Tensor) -> Tensor:
    """Posterior covariances [m, r, r] under the prior's."""
    return covariance - posterior.factor @ posterior.factor.transpose(1, 2)


def variances(posterior: Posterior, z: Tensor, users: Tensor, covariance: Tensor) -> Tensor:
    """Variance of <z, o> for each row of z [n, r] and its user."""
    return torch.einsum("ni,nij,nj->n", z, covariances(posterior, covariance)[users], z).clamp_min(0.0)
