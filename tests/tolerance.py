"""How far two ways of computing the same number may be apart: kernels and threads sum in other orders."""

import math

import torch

READING = 16  # sums behind one another in a pass of a tiny backbone: 8 in each of its 2 layers
GRADIENT = 3 * READING  # a backward pass makes two for each
WIDTH = 64  # products in the longest of these sums


def rounding(depth: int = READING, terms: int = WIDTH, dtype: torch.dtype = torch.float32) -> float:
    """A bound on the difference, relative to the largest number, of `depth` sums of `terms` products in turn.

    Errors of a sum add up like steps to either side, hence the root of `terms`; those of one sum pass through the next,
    at worst in full. Twice that, since both ways round.
    """
    return 2 * torch.finfo(dtype).eps * math.sqrt(terms) * depth
