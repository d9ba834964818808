"""How a ratio is measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """What `first` takes over what `second` takes.

    Args:
        name: what over what.
        first, second: do the work; where the unit is not seconds, they return what it took.
        at_most: the bar; `None` where the ratio is only reported.
        repeats: how often both are measured, one after the other; once before that, unmeasured, where more than once.
    """

    name: str
    first: Callable[[], object]
    second: Callable[[], object]
    at_most: float | None = None
    repeats: int = 7
    unit: str = "seconds"

    def measure(self) -> dict[str, Any]:
        """JSON-ready: median ratio, its quartiles, what both sides took (medians), and whether the bar holds."""
        if self.repeats > 1:
            self.first(), self.second()
        cost = _timed if self.unit == "seconds" else _told
        taken = np.array([[cost(self.first), cost(self.second)] for _ in range(self.repeats)])
        low, median, high = np.quantile(taken[:, 0] / taken[:, 1], [0.25, 0.5, 0.75])
        first, second = np.median(taken, axis=0)
        return {
            "name": self.name,
            "median": float(median),
            "quartiles": [float(low), float(high)],
            "unit": self.unit,
            self.unit: [float(first), float(second)],
            "repeats": self.repeats,
            "at_most": self.at_most,
            "holds": None if self.at_most is None else bool(median <= self.at_most),
        }


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _told(work: Callable[[], object]) -> float:
    return float(work())  # type: ignore[arg-type]
