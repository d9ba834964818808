"""Figures of an audit as text."""

import math

from prm.metrics import Estimate


def points(e: Estimate | None) -> str:
    """A difference of shares in percentage points, with its interval where there is one."""
    if e is None or math.isnan(e.value):
        return "-"
    value, low, high = (near(100 * x, 1) for x in (e.value, e.low, e.high))
    return f"{value:+.1f}" + (f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else "")


def nats(e: Estimate, sign: str = "") -> str:
    """Nats with their interval where there is one."""
    value, low, high = (near(x, 3) for x in (e.value, e.low, e.high))
    return f"{value:{sign}.3f}" + (f" [{low:{sign}.3f}, {high:{sign}.3f}]" if math.isfinite(low) else "")


def near(value: float, digits: int) -> float:
    """Rounded, and never -0."""
    return round(value, digits) + 0.0


def percent(value: float) -> str:
    """A share in percent; a dash where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
