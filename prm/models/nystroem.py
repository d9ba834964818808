"""Nystroem features of an RBF kernel, for linear heads (Williams and Seeger 2001)."""

import torch
from torch import Tensor, nn

_MIN_EIGENVALUE = 1e-6  # relative to the largest: below it is float32 rounding
_BLOCK = 2**24  # maximum number of kernel values held at once
_MIN_WIDTH = 1e-8  # if all texts are the same


class Rbf(nn.Module):
    """Maps states h [n, d] to phi(h) [n, m], float32, with <phi(h), phi(h')> = w exp(-|h - h'|^2 / w).

    This is exact if one of the two is a landmark, an approximation otherwise, and never above w; a state far from all
    landmarks maps to 0. w is the mean squared distance of the texts from their mean. It is the kernel's width; as a
    factor it gives phi the average length of h, so that a penalty means the same for both.

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
        """Set width and landmarks from states [n, d] of training texts, n >= m; if n > m, landmarks are drawn."""
        m = len(self.landmarks)
        if len(states) > m:
            generator = torch.Generator().manual_seed(seed)
            landmarks = states[torch.randperm(len(states), generator=generator)[:m].to(states.device)]
        else:
            landmarks = states
        self.landmarks.copy_(landmarks)
        self.width.copy_((states - states.mean(0)).square().sum(1).mean().clamp_min(_MIN_WIDTH))
        exact, width = self.landmarks.cpu().double(), self.width.cpu().double()
        values, vectors = torch.linalg.eigh(rbf(exact, exact, width))
        kept = values > _MIN_EIGENVALUE * values[-1]  # duplicates have eigenvalue 0
        root = vectors[:, kept] * values[kept].pow(-0.25)
        self.whitening.copy_(width.sqrt() * (root @ root.T))

    def forward(self, states: Tensor) -> Tensor:
        size = max(1, _BLOCK // len(self.landmarks))
        return torch.cat([rbf(part, self.landmarks, self.width) @ self.whitening for part in states.split(size)])


def rbf(states: Tensor, landmarks: Tensor, width: Tensor) -> Tensor:
    """exp(-|h - h'|^2 / width), [n, m], for every h in states [n, d] and h' in landmarks [m, d]."""
    centre = landmarks.mean(0)  # smaller squares lose less to rounding in their difference
    a, b = states - centre, landmarks - centre
    squared = torch.addmm(b.square().sum(1), a, b.T, alpha=-2.0) + a.square().sum(1, keepdim=True)
    return torch.exp(-squared.clamp_min(0.0) / width)
