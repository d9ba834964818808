"""The text prior: a user's prior mean and variance reduction, predicted from their text."""

import torch
from torch import Tensor, nn


class TextPrior(nn.Module):
    """Maps hidden states of users' texts [n, d] to means [n, rank] and factors [n, rank, kept] of a `Posterior`.

    Its prior covariance is that of all users: the text is treated as a first observation.

    Buffers: mean, scale [d], of the distinct training texts; weight [rank, d]; factor [rank, kept].
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    factor: Tensor

    def __init__(self, dim: int, rank: int, kept: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("weight", torch.zeros(rank, dim))
        self.register_buffer("factor", torch.zeros(rank, kept))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        means = ((states - self.mean) / self.scale) @ self.weight.T
        return means, self.factor.expand(len(states), -1, -1)
