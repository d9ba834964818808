"""Best of N for a person."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rerank.sampling import Sampling

if TYPE_CHECKING:
    from rerank.candidates import Sampler
    from rerank.select import Ranked, rank

__all__ = ["Ranked", "Sampler", "Sampling", "rank"]

_SLOW = {"Sampler": "rerank.candidates", "Ranked": "rerank.select", "rank": "rerank.select"}


def __getattr__(name: str) -> Any:
    if name in _SLOW:
        return getattr(import_module(_SLOW[name]), name)
    raise AttributeError(f"module 'rerank' has no attribute {name!r}")
