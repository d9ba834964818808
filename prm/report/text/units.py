"""Figures of an audit as text."""

from prm.io.formatting import estimated, figure
from prm.metrics import Estimate


def points(e: Estimate | None) -> str:
    """A difference of shares in percentage points, with its interval if that is finite."""
    return estimated(e, scale=100.0, sign="+")


def nats(e: Estimate, sign: str = "") -> str:
    """Nats with their interval if that is finite."""
    return estimated(e, digits=3, sign=sign)


def percent(value: float) -> str:
    """A share in percent; a dash if it is not finite."""
    return figure(100 * value)
