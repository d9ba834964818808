"""Figures as a reader sees them: never an infinity, never "nan", never -0."""

import math
from typing import Any

from prm.metrics import Estimate

NONE = "-"


def figure(value: float | None, digits: int = 1, sign: str = "") -> str:
    """A number with so many digits; a dash where there is none, or no finite one."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def interval(e: Estimate, digits: int = 1, scale: float = 1.0, sign: str = "") -> str:
    """Its ends in brackets; nothing where an end is missing."""
    if not (math.isfinite(e.low) and math.isfinite(e.high)):
        return ""
    return f"[{figure(scale * e.low, digits, sign)}, {figure(scale * e.high, digits, sign)}]"


def estimated(e: Estimate | None, digits: int = 1, scale: float = 1.0, sign: str = "", unit: str = "") -> str:
    """The value, its unit and its interval, where it has ends: "64.7 [60.1, 69.0]"; a dash where there is none."""
    if e is None or not math.isfinite(e.value):
        return NONE
    ends = interval(e, digits, scale, sign)
    return f"{figure(scale * e.value, digits, sign)}{unit}{f' {ends}' if ends else ''}"


def bar(e: Estimate, scale: float = 1.0) -> Any:
    """Lengths of an error bar below and above, [[below], [above]]; `None` where an end is missing."""
    if not all(map(math.isfinite, (e.value, e.low, e.high))):
        return None
    return [[scale * (e.value - e.low)], [scale * (e.high - e.value)]]
