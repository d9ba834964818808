"""Sigmoids averaged over normally distributed logits, elementwise."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def quadrature(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of expectations under N(0, 1) (Gauss-Hermite)."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(x), torch.from_numpy(w / w.sum())


FINE, COARSE = quadrature(32), quadrature(12)
_LEAST = 1e-6  # probability of an outcome


class Normal(NamedTuple):
    """Means and variances of normally distributed logits, [n] each."""

    mean: Tensor
    variance: Tensor


def integrated(mean: Tensor, variance: Tensor) -> Tensor:
    """E[sigmoid(x)] for x ~ N(mean, variance), elementwise."""
    nodes, weights = (part.to(mean) for part in FINE)
    return torch.sigmoid(mean.unsqueeze(-1) + spread_of(variance, nodes)) @ weights


def inflated(margin: Tensor, variance: Tensor) -> Tensor:
    """The logit c with E[sigmoid(c + e)] = sigmoid(margin) for e ~ N(0, variance), elementwise."""
    nodes, weights = (part.to(margin) for part in FINE)
    spread, target = spread_of(variance, nodes), torch.sigmoid(margin)
    logit = margin * (1.0 + torch.pi / 8.0 * variance).sqrt()  # the probit approximation, off by a few hundredths
    for _ in range(4):
        p = torch.sigmoid(logit.unsqueeze(-1) + spread)
        slope = ((p * (1.0 - p)) @ weights).clamp_min(1e-12)
        logit = logit - ((p @ weights - target) / slope).clamp(-2.0, 2.0)
    return logit


def information(logit: Normal, others: Normal, covariance: Tensor) -> Tensor:
    """Mean mutual information (nats) between each of n outcomes and each of t others, [n].

    An outcome is 1 with P = sigmoid(x). This is how much one outcome is expected to lower the log loss of the others
    (Bickford Smith et al. 2023, "Prediction-oriented Bayesian active learning"). Given an outcome, the others' logits
    have their exact mean and expected variance, and are taken as normal; their average is the probit approximation.

    Args:
        logit: of the n outcomes.
        others: of the t others.
        covariance: between the logits of both, [n, t].
    """
    nodes, weights = (part.to(covariance) for part in FINE)
    p = torch.sigmoid(logit.mean.unsqueeze(-1) + spread_of(logit.variance, nodes))
    yes = (p @ weights).clamp(_LEAST, 1.0 - _LEAST)[:, None]
    with_outcome = covariance * ((p * (1.0 - p)) @ weights)[:, None]  # covariance of outcome and logit (Stein's lemma)
    variance = others.variance - with_outcome.square() / (yes * (1.0 - yes))
    if_yes = _entropy(_averaged(others.mean + with_outcome / yes, variance))
    if_no = _entropy(_averaged(others.mean - with_outcome / (1.0 - yes), variance))
    left = yes * if_yes + (1.0 - yes) * if_no
    return (_entropy(_averaged(*others)) - left).mean(1).clamp_min(0.0)


def spread_of(variance: Tensor, nodes: Tensor) -> Tensor:
    """Deviations from the mean at the nodes of a quadrature, [..., nodes]."""
    return variance.clamp_min(0.0).sqrt().unsqueeze(-1) * nodes


def _averaged(mean: Tensor, variance: Tensor) -> Tensor:
    """E[sigmoid(x)] for x ~ N(mean, variance), by the probit approximation, elementwise."""
    return torch.sigmoid(mean / (1.0 + torch.pi / 8.0 * variance.clamp_min(0.0)).sqrt())


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p) + torch.special.entr(1.0 - p)
