"""Numbers formatted for reports: never "inf", "nan" or "-0"."""

import math

from prm.metrics import Estimate

NONE = "-"


def figure(value: float | None, digits: int = 1, sign: str = "") -> str:
    """A number with so many digits after the point; a dash if it is missing or not finite."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def interval(e: Estimate, digits: int = 1, scale: float = 1.0, sign: str = "") -> str:
    """The interval's ends in brackets; empty if an end is not finite."""
    if not (math.isfinite(e.low) and math.isfinite(e.high)):
        return ""
    return f"[{figure(scale * e.low, digits, sign)}, {figure(scale * e.high, digits, sign)}]"


def estimated(e: Estimate | None, digits: int = 1, scale: float = 1.0, sign: str = "", unit: str = "") -> str:
    """Value, unit and interval (if finite), as in "64.7 [60.1, 69.0]"; a dash if there is no value."""
    if e is None or not math.isfinite(e.value):
        return NONE
    ends = interval(e, digits, scale, sign)
    return f"{figure(scale * e.value, digits, sign)}{unit}{f' {ends}' if ends else ''}"


def by_sign(e: Estimate, words: tuple[str, str]) -> tuple[str, Estimate]:
    """(first word for a difference above 0 and second for one below, the difference turned round if it is below)."""
    return (words[1], Estimate(-e.value, -e.high, -e.low)) if e.value < 0.0 else (words[0], e)


def gain(e: Estimate, what: str, words: tuple[str, str], unit: str, digits: int = 1, scale: float = 1.0) -> str:
    """A gain in words, as in "log loss lower by 0.012 [0.001, 0.023] nats", or that none is seen.

    Args:
        what: is gained, such as "log loss"; words: for a gain above 0, and for one below.
    """
    if figure(scale * e.value, digits) == figure(0.0, digits):
        return difference(e, what, unit, digits, scale)
    word, size = by_sign(e, words)
    return f"{what} {word} by {estimated(size, digits, scale)} {unit}"


def difference(e: Estimate, what: str, unit: str, digits: int = 1, scale: float = 1.0) -> str:
    """A difference with its sign, as in "+1.2 [+0.1, +2.3] points", or that none is seen in `what`."""
    if figure(scale * e.value, digits) != figure(0.0, digits):
        return f"{estimated(e, digits, scale, '+')} {unit}"
    ends = interval(e, digits, scale, "+")
    seen = ends != interval(Estimate(0.0, 0.0, 0.0), digits, 1.0, "+")
    return f"no difference seen in {what}" + (f", {ends} {unit}" if ends and seen else "")


def bar(e: Estimate, scale: float = 1.0) -> list[list[float]] | None:
    """Lengths of an error bar, [[below], [above]]; `None` if the value or an end is not finite."""
    if not all(map(math.isfinite, (e.value, e.low, e.high))):
        return None
    return [[scale * (e.value - e.low)], [scale * (e.high - e.value)]]
