"""Sigmoids averaged over normally distributed logits, elementwise."""

import numpy as np
import torch
from torch import Tensor


def quadrature(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of expectations under N(0, 1) (Gauss-Hermite)."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(x), torch.from_numpy(w / w.sum())


FINE, COARSE = quadrature(32), quadrature(12)


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


def information(mean: Tensor, variance: Tensor) -> Tensor:
    """Mutual information (nats) between x ~ N(mean, variance) and an outcome that is 1 with P = sigmoid(x).

    The entropy of the outcome minus its mean entropy given x (Houlsby et al. 2011, "Bayesian active learning").
    """
    nodes, weights = (part.to(mean) for part in FINE)
    p = torch.sigmoid(mean.unsqueeze(-1) + spread_of(variance, nodes))
    return (_entropy(p @ weights) - _entropy(p) @ weights).clamp_min(0.0)


def spread_of(variance: Tensor, nodes: Tensor) -> Tensor:
    """Deviations from the mean at the nodes of a quadrature, [..., nodes]."""
    return variance.clamp_min(0.0).sqrt().unsqueeze(-1) * nodes


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p) + torch.special.entr(1.0 - p)
