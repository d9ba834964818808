"""How a ratio is measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """Seconds of `first` over seconds of `second`, times `scale`.

    Args:
        name: what over what.
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
        """JSON-ready: median ratio, its quartiles, median seconds of both sides, and whether the bar holds."""
        if self.repeats > 1:
            self.first(), self.second()
        seconds = np.array([[timed(self.first), timed(self.second)] for _ in range(self.repeats)])
        low, median, high = np.quantile(self.scale * seconds[:, 0] / seconds[:, 1], [0.25, 0.5, 0.75])
        first, second = np.median(seconds, axis=0)
        return {
            "name": self.name,
            "median": float(median),
            "quartiles": [float(low), float(high)],
            "seconds": [float(first), float(second)],
            "repeats": self.repeats,
            "bar": self.bar,
            "holds": self._holds(float(median)),
        }


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
