"""Figures of an audit as text."""

from prm.io.formatting import estimated, figure
from prm.metrics import Estimate


def points(e: Estimate | None) -> str:
    """A difference of shares in percentage points, with its interval where there is one."""
    return estimated(e, scale=100.0, sign="+")


def nats(e: Estimate, sign: str = "") -> str:
    """Nats with their interval where there is one."""
    return estimated(e, digits=3, sign=sign)


def percent(value: float) -> str:
    """A share in percent; a dash where there is none."""
    return figure(100 * value)
