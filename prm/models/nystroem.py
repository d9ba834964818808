"""Linear heads on a kernel instead of inner products: Nystroem features (Williams and Seeger 2001)."""

import torch
from torch import Tensor, nn

LANDMARKS = 1024
_LEAST = 1e-6  # share of the largest eigenvalue below which float32 cannot tell a direction from rounding
_BLOCK = 2**24  # kernel values that are held at once
_NO_WIDTH = 1e-8  # where all texts are one


class Rbf(nn.Module):
    """States h [n, d] to phi(h) [n, m], float32, with <phi(h), phi(h')> = w exp(-|h - h'|^2 / w).

    Exactly so where one of the two is a landmark; between others as far as the landmarks show it, and never more than
    w: what is like none of them goes to 0. w is the mean squared distance of the texts from their mean. It is the
    kernel's width, and as a factor makes phi as long as h is on average, so that a penalty means the same for both.

    Buffers: landmarks [m, d]; whitening [m, m], w^(1/2) K^(-1/2) for the kernel K of the landmarks; width [], w.
    """

    landmarks: Tensor
    whitening: Tensor
    width: Tensor

    def __init__(self, landmarks: int, dim: int):
        super().__init__()
        self.register_buffer("landmarks", torch.zeros(landmarks, dim))
        self.register_buffer("whitening", torch.zeros(landmarks, landmarks))
        self.register_buffer("width", torch.ones(()))

    @torch.no_grad()
    def fit(self, states: Tensor, seed: int) -> None:
        """Take width and landmarks from states [n, d] of training texts, n >= m; where n > m they are drawn."""
        m = len(self.landmarks)
        if len(states) > m:
            draw = torch.Generator().manual_seed(seed)
            chosen = states[torch.randperm(len(states), generator=draw)[:m].to(states.device)]
        else:
            chosen = states
        self.landmarks.copy_(chosen)
        self.width.copy_((states - states.mean(0)).square().sum(1).mean().clamp_min(_NO_WIDTH))
        exact, width = self.landmarks.cpu().double(), self.width.cpu().double()
        values, vectors = torch.linalg.eigh(rbf(exact, exact, width))
        kept = values > _LEAST * values[-1]  # texts that are the same are one
        root = vectors[:, kept] * values[kept].pow(-0.25)
        self.whitening.copy_(width.sqrt() * (root @ root.T))

    def forward(self, states: Tensor) -> Tensor:
        size = max(1, _BLOCK // len(self.landmarks))
        return torch.cat([rbf(part, self.landmarks, self.width) @ self.whitening for part in states.split(size)])


def rbf(states: Tensor, landmarks: Tensor, width: Tensor) -> Tensor:
    """exp(-|h - h'|^2 / width), [n, m], for every h in states [n, d] and h' in landmarks [m, d]."""
    centre = landmarks.mean(0)  # squares are taken from squares: the smaller they are, the less rounding is left
    a, b = states - centre, landmarks - centre
    squared = torch.addmm(b.square().sum(1), a, b.T, alpha=-2.0) + a.square().sum(1, keepdim=True)
    return torch.exp(-squared.clamp_min(0.0) / width)
