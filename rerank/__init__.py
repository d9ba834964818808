"""Best-of-N ranking for a user."""

from typing import TYPE_CHECKING

from prm.io.lazy import on_first_use  # importing `prm` before torch also says how its threads wait

if TYPE_CHECKING:
    from prm.io.endpoint import Endpoint
    from rerank.pairs.make import PreferencePairs, make_pairs
    from rerank.pairs.rules import PairRules
    from rerank.ranking.best_of_n import BestOfN, BestResponse
    from rerank.ranking.reranker import RankedResponse, Reranker
    from rerank.ranking.strategies import Ranked, rank
    from rerank.sampling.config import Sampling
    from rerank.sampling.sampler import Sampler

__all__ = [
    "BestOfN",
    "BestResponse",
    "Endpoint",
    "PairRules",
    "PreferencePairs",
    "Ranked",
    "RankedResponse",
    "Reranker",
    "Sampler",
    "Sampling",
    "make_pairs",
    "rank",
]

_MODULES = {
    "BestOfN": "rerank.ranking.best_of_n",
    "BestResponse": "rerank.ranking.best_of_n",
    "Endpoint": "prm.io.endpoint",
    "PairRules": "rerank.pairs.rules",
    "PreferencePairs": "rerank.pairs.make",
    "Ranked": "rerank.ranking.strategies",
    "RankedResponse": "rerank.ranking.reranker",
    "Reranker": "rerank.ranking.reranker",
    "Sampler": "rerank.sampling.sampler",
    "Sampling": "rerank.sampling.config",
    "make_pairs": "rerank.pairs.make",
    "rank": "rerank.ranking.strategies",
}  # imported on first use, as in prm

__getattr__, __dir__ = on_first_use(__name__, _MODULES)
