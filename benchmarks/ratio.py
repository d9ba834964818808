"""A ratio of two costs and its measurement."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np


class Measured(TypedDict):
    """A measured ratio.

    `median` and `quartiles` are of the ratio, `costs` the medians of both sides in `unit`; `holds` says whether the bar
    holds, if there is one.
    """

    name: str
    median: float
    quartiles: list[float]
    unit: str
    costs: list[float]
    repeats: int
    bar: str | None
    holds: bool | None


@dataclass(frozen=True)
class Ratio:
    """The cost of `first` over the cost of `second`, times `scale`.

    Args:
        name: what over what.
        first, second: do the work; if the unit is not "seconds", they return the cost.
        at_most, at_least: the bar, if there is one.
        scale: corrects for a side that does only a part of the work, or for rates.
        repeats: how often both are measured in turn; with more than one, after a warm-up.
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
        """The bar as text."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return None if self.at_least is None else f"at least {self.at_least:g}"

    def _holds(self, ratio: float) -> bool | None:
        if self.at_most is not None:
            return ratio <= self.at_most
        return None if self.at_least is None else ratio >= self.at_least

    def measure(self) -> Measured:
        """Measure both sides in turn."""
        if self.repeats > 1:
            self.first(), self.second()
        cost = timed if self.unit == "seconds" else _reported
        costs = np.array([[cost(self.first), cost(self.second)] for _ in range(self.repeats)])
        low, median, high = np.quantile(self.scale * costs[:, 0] / costs[:, 1], [0.25, 0.5, 0.75])
        first, second = np.median(costs, axis=0)
        return {
            "name": self.name,
            "median": float(median),
            "quartiles": [float(low), float(high)],
            "unit": self.unit,
            "costs": [float(first), float(second)],
            "repeats": self.repeats,
            "bar": self.bar,
            "holds": self._holds(float(median)),
        }


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _reported(work: Callable[[], object]) -> float:
    return float(work())  # type: ignore[arg-type]
