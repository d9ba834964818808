"""Best-of-N ranking for a user."""

from typing import TYPE_CHECKING

from prm.io.lazy import on_first_use  # importing `prm` before torch also says how its threads wait

if TYPE_CHECKING:
    from rerank.ranking.reranker import RankedResponse, Reranker
    from rerank.ranking.strategies import Ranked, rank
    from rerank.sampling.config import Sampling
    from rerank.sampling.sampler import Sampler

__all__ = ["Ranked", "RankedResponse", "Reranker", "Sampler", "Sampling", "rank"]

_MODULES = {
    "Ranked": "rerank.ranking.strategies",
    "RankedResponse": "rerank.ranking.reranker",
    "Reranker": "rerank.ranking.reranker",
    "Sampler": "rerank.sampling.sampler",
    "Sampling": "rerank.sampling.config",
    "rank": "rerank.ranking.strategies",
}  # imported on first use, as in prm

__getattr__, __dir__ = on_first_use(__name__, _MODULES)
