"""`Reranker`: given responses ranked for a user, with the results of sentence-transformers' `CrossEncoder.rank`."""

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from prm.data.arguments import require_list
from prm.data.comparison import PromptLike, parse_prompt
from prm.errors import PrmError
from prm.scoring.scorer import Scorer
from rerank.ranking.rank_candidates import Ranker
from rerank.ranking.strategy_flag import Strategy


class RankedResponse(TypedDict):
    """One response: its index in the input, the value that it is ranked by, and its text if asked for."""

    corpus_id: int
    score: float
    text: NotRequired[str]


class Reranker:
    """Ranks given responses to a prompt for a user.

    Args:
        scorer: the reward model or policy.
        strategy: as of `rerank --strategy`: `best` ranks by the reward in logits, `pessimistic:K` and `cautious:K` by
            lower bounds, `soft:T` draws; see `rerank.ranking.strategies`.

    Raises `PrmError` for an unknown strategy, and for `regularised`, which needs the generator.
    """

    def __init__(self, scorer: Scorer, strategy: str = "best"):
        if isinstance(scorer, str | Path):
            raise TypeError(f"Reranker takes a Scorer: Reranker.from_pretrained({str(scorer)!r})")
        chosen = Strategy.parse(strategy)
        if chosen.name == "regularised":
            raise PrmError(f"strategy {strategy!r} needs the generator's log-probabilities: use the command rerank")
        self.scorer, self.strategy = scorer, strategy
        self._ranker = Ranker(scorer, chosen)

    @classmethod
    def from_pretrained(
        cls,
        run: str | Path,
        backbone: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        strategy: str = "best",
    ) -> "Reranker":
        """Load a run folder. Arguments and errors are those of `prm.Scorer.from_pretrained`."""
        return cls(Scorer.from_pretrained(run, backbone, device, dtype), strategy)

    def __repr__(self) -> str:
        return f"Reranker({self.scorer!r}, strategy={self.strategy!r})"

    def rank(
        self,
        prompt: PromptLike,
        responses: Sequence[str],
        user: str | None = None,
        user_text: str = "",
        top_k: int | None = None,
        return_documents: bool = True,
    ) -> list[RankedResponse]:
        """The responses from the highest score to the lowest; ties keep the order of the input.

        Args:
            user: id; an unknown user, or `None`, gets the generic user's ranking.
            top_k: return only the best so many; all if `None`.
            return_documents: also return the texts.

        Raises `DataError` for a prompt or response that is empty or does not fit, `PrmError` for a `top_k` below 1, and
        for a lower bound of a run without uncertainty.
        """
        if top_k is not None and top_k < 1:
            raise PrmError(f"'top_k' must be at least 1, got {top_k}")
        texts = require_list("responses", responses)
        if not texts:
            return []
        ranking = self._ranker.rank(parse_prompt(prompt), texts, user, user_text)
        results: list[RankedResponse] = []
        for candidate in ranking.candidates[:top_k]:
            result = RankedResponse(corpus_id=candidate.corpus_id, score=float(ranking.scores[candidate.corpus_id]))
            if return_documents:
                result["text"] = candidate.text
            results.append(result)
        return results
