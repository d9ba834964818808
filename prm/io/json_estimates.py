"""Estimates as JSON."""

import math
from collections.abc import Mapping
from typing import TypedDict

from prm.metrics import Estimate


class Ends(TypedDict):
    """An `Estimate` as JSON: an end that is infinite, and a value that cannot be computed, is null."""

    value: float | None
    low: float | None
    high: float | None


def number_of(value: float | None, missing: float = math.nan) -> float:
    """The number that was stored, or `missing` for null."""
    return missing if value is None else value


def estimate_of(ends: Ends | Mapping[str, float | None]) -> Estimate:
    """The estimate that was stored."""
    return Estimate(number_of(ends["value"]), number_of(ends["low"], -math.inf), number_of(ends["high"], math.inf))
