"""Best of N for a person."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rerank.sampling.config import Sampling

if TYPE_CHECKING:
    from rerank.ranking.strategies import Ranked, rank
    from rerank.sampling.sampler import Sampler

__all__ = ["Ranked", "Sampler", "Sampling", "rank"]

_SLOW = {
    "Sampler": "rerank.sampling.sampler",
    "Ranked": "rerank.ranking.strategies",
    "rank": "rerank.ranking.strategies",
}


def __getattr__(name: str) -> Any:
    if name in _SLOW:
        return getattr(import_module(_SLOW[name]), name)
    raise AttributeError(f"module 'rerank' has no attribute {name!r}")
