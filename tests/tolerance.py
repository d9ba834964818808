"""Tolerances for two computations of the same number, in which kernels and threads sum in different orders."""

import math

import torch

READING = 16  # consecutive sums in a forward pass of a tiny backbone: 8 in each of its 2 layers
GRADIENT = 3 * READING  # a backward pass adds two for each
WIDTH = 64  # products in the longest of these sums


def rounding(depth: int = READING, terms: int = WIDTH, dtype: torch.dtype = torch.float32) -> float:
    """A bound on the difference, relative to the largest number, after `depth` consecutive sums of `terms` products.

    Rounding errors in a sum add up like a random walk, hence the root of `terms`; at worst, each sum passes the errors
    of the one before on in full. Twice that, since both computations round.
    """
    return 2 * torch.finfo(dtype).eps * math.sqrt(terms) * depth
