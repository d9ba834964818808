"""What the two sources of Reddit summaries share: who prefers the shorter summary."""

import numpy as np

_SEED, _SHORTER = 3456, 0.3


def draw_tastes(workers: int) -> list[bool]:
    """Whether each worker, those with most training comparisons first, prefers the shorter summary.

    The paper's draw (section 5.1), by numpy's legacy generator: of the first ten the 4th, 5th and 6th do. More
    workers leave the first ones as they are.
    """
    drawn = np.random.RandomState(_SEED).choice([0, 1], size=workers, p=[1 - _SHORTER, _SHORTER])
    return [bool(taste) for taste in drawn]
