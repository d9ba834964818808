"""How a ratio is measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """What `first` takes over what `second` takes, times `scale`.

    Args:
        name: what over what.
        first, second: do the work; where the unit is not seconds, they return what it took.
        at_most, at_least: the bar, if there is one.
        scale: where one side does only a part of what the name says, or a rate counts otherwise.
        repeats: how often both are measured, one after the other; once before that, unmeasured, where more than once.
    """

    name: str
    first: Callable[[], object]
    second: Callable[[], object]
    at_most: float | None = None
    at_least: float | None = None
    scale: float = 1.0
    repeats: int = 7
    unit: str = "seconds"

    @property
    def bar(self) -> str | None:
        """The bar in words."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return None if self.at_least is None else f"at least {self.at_least:g}"

    def _holds(self, ratio: float) -> bool | None:
        if self.at_most is not None:
            return ratio <= self.at_most
        return None if self.at_least is None else ratio >= self.at_least

    def measure(self) -> dict[str, Any]:
        """JSON-ready: median ratio, its quartiles, what both sides took (medians), and whether the bar holds."""
        if self.repeats > 1:
            self.first(), self.second()
        cost = timed if self.unit == "seconds" else _reported_seconds
        taken = np.array([[cost(self.first), cost(self.second)] for _ in range(self.repeats)])
        low, median, high = np.quantile(self.scale * taken[:, 0] / taken[:, 1], [0.25, 0.5, 0.75])
        first, second = np.median(taken, axis=0)
        return {
            "name": self.name,
            "median": float(median),
            "quartiles": [float(low), float(high)],
            "unit": self.unit,
            self.unit: [float(first), float(second)],
            "repeats": self.repeats,
            "bar": self.bar,
            "holds": self._holds(float(median)),
        }


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _reported_seconds(work: Callable[[], object]) -> float:
    return float(work())  # type: ignore[arg-type]
