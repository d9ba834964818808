"""Figures as text, with their units."""

import math

from prm.io.formatting import NONE, by_sign, estimated, figure
from prm.metrics import Estimate

Card = tuple[str, str, str]  # figure, what it is, its interval in words
_LOWER = ("lower", "higher")  # a log loss that decreases, or increases


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


def lower_by(e: Estimate, than: str = "", unit: str = "nats") -> str:
    """How far a log loss is lower, as in "lower by 0.021 nats (95% interval: 0.010 to 0.032)", or higher.

    Args:
        e: decrease in log loss, in nats.
        than: what it is compared with, as in " than that of the generic user".
    """
    word, size = by_sign(e, _LOWER)
    by = f"by {figure(size.value, 3)} {unit}"
    if _is_clear(e):
        return f"{word}{than} {by} ({between(size, 3, 1.0, '')})"
    return f"not clearly lower or higher{than} ({word} {by}; {between(size, 3, 1.0, '')})"


def lower_card(e: Estimate, rest: str = "") -> Card:
    """A decrease in log loss as a figure for the top of a page; `rest` says against what, or after how many."""
    word, size = by_sign(e, _LOWER)
    return card(size, f"nats {word} log loss{rest}{'' if _is_clear(e) else ' (not clearly)'}", 3, 1.0, "")


def _is_clear(e: Estimate) -> bool:
    return round(e.low, 3) > 0.0 or round(e.high, 3) < 0.0  # as printed: what is "0.000" is no difference
