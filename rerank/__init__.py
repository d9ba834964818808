"""Best-of-N ranking for a user."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import prm  # noqa: F401 - it says how threads wait, before torch is imported

if TYPE_CHECKING:
    from rerank.ranking.strategies import Ranked, rank
    from rerank.sampling.config import Sampling
    from rerank.sampling.sampler import Sampler

__all__ = ["Ranked", "Sampler", "Sampling", "rank"]

_MODULES = {
    "Ranked": "rerank.ranking.strategies",
    "Sampler": "rerank.sampling.sampler",
    "Sampling": "rerank.sampling.config",
    "rank": "rerank.ranking.strategies",
}  # imported on first use, as in prm


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'rerank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
