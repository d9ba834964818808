"""Best-of-N ranking for a user."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rerank.sampling.config import Sampling

if TYPE_CHECKING:
    from rerank.ranking.strategies import Ranked, rank
    from rerank.sampling.sampler import Sampler

__all__ = ["Ranked", "Sampler", "Sampling", "rank"]

_LAZY = {
    "Sampler": "rerank.sampling.sampler",
    "Ranked": "rerank.ranking.strategies",
    "rank": "rerank.ranking.strategies",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'rerank' has no attribute {name!r}")
