"""Figures as text, with their units."""

import math

from prm.io.formatting import NONE, estimated, figure
from prm.metrics import Estimate

Card = tuple[str, str, str]  # figure, what it is, its interval in words


def points(e: Estimate | None) -> str:
    """A difference of shares in percentage points, with its interval if that is finite."""
    return estimated(e, scale=100.0, sign="+")


def nats(e: Estimate, sign: str = "") -> str:
    """Nats with their interval if that is finite."""
    return estimated(e, digits=3, sign=sign)


def percent(value: float) -> str:
    """A share in percent; a dash if it is not finite."""
    return figure(100 * value)


def between(e: Estimate, digits: int = 1, scale: float = 100.0, unit: str = "%", sign: str = "") -> str:
    """The interval in words, as in "95% interval: 60.1% to 69.0%"; says so if there is none."""
    if not (math.isfinite(e.low) and math.isfinite(e.high)):
        return "no interval: too little to draw from"
    low, high = (figure(scale * end, digits, sign) for end in (e.low, e.high))
    return f"95% interval: {low}{unit if unit == '%' else ''} to {high}{unit}"


def card(e: Estimate, what: str, digits: int = 1, scale: float = 100.0, unit: str = "%", sign: str = "") -> Card:
    """A figure for the top of a page, with its unit, and its interval in words."""
    if not math.isfinite(e.value):
        return NONE, what, ""
    return f"{figure(scale * e.value, digits, sign)}{unit}", what, between(e, digits, scale, unit, sign)
