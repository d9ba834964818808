"""What a text says beforehand of the person who wrote it: the mean of their prior, and how much narrower it is."""

import torch
from torch import Tensor, nn


class TextPrior(nn.Module):
    """Hidden states of people's texts [n, d] to what is known of them: means [n, rank], factors [n, rank, kept].

    As a `Posterior` over the covariance of all people: a text is one more thing that was told.

    Buffers: mean, scale [d], of the distinct texts learnt from; weight [rank, d]; factor [rank, kept].
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
