"""How a ratio is measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """Seconds of `first` over seconds of `second`.

    Args:
        name: what over what.
        at_most: the bar; `None` where the ratio is only reported.
        repeats: how often both are measured, one after the other; once before that, unmeasured, where more than once.
    """

    name: str
    first: Callable[[], object]
    second: Callable[[], object]
    at_most: float | None = None
    repeats: int = 7

    def measure(self) -> dict[str, Any]:
        """JSON-ready: median ratio, its quartiles, median seconds of both sides, and whether the bar holds."""
        if self.repeats > 1:
            self.first(), self.second()
        seconds = np.array([[timed(self.first), timed(self.second)] for _ in range(self.repeats)])
        low, median, high = np.quantile(seconds[:, 0] / seconds[:, 1], [0.25, 0.5, 0.75])
        first, second = np.median(seconds, axis=0)
        return {
            "name": self.name,
            "median": float(median),
            "quartiles": [float(low), float(high)],
            "seconds": [float(first), float(second)],
            "repeats": self.repeats,
            "at_most": self.at_most,
            "holds": None if self.at_most is None else bool(median <= self.at_most),
        }


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
