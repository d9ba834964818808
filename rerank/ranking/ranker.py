"""Rank requests: take or sample the candidates, score them, and rank them by the chosen strategy."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prm.data.comparison import Prompt, parse_prompt
from prm.errors import PrmError
from prm.scoring.scorer import Scorer
from rerank.ranking.candidates import Candidates
from rerank.ranking.strategies import Ranked, cautious, pessimistic, plackett_luce, rank, regularised, soft
from rerank.ranking.strategy_flag import Strategy
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler


class Ranking(NamedTuple):
    """Candidates, best first, with the rewards and reported scores, float [n], in the order of the input.

    Without a value of its own, a strategy's score is the reward.
    """

    candidates: list[Ranked]
    rewards: Tensor
    scores: Tensor


class Ranker:
    """Ranks responses for users.

    Args:
        sampler: samples responses for requests without any, and gives the log-probabilities for `regularised`.
        n: number of responses to sample.
        sampling: sampling settings; the `soft` strategy uses their seed too.
    """

    def __init__(self, scorer: Scorer, sampler: Sampler | None, n: int, sampling: Sampling, strategy: Strategy):
        self._scorer, self._sampler = scorer, sampler
        self._candidates = Candidates(sampler, scorer) if sampler is not None else None
        self._n, self._sampling, self._strategy = n, sampling, strategy

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the request with `known_user` and `ranking`: best first, each with reward and, if it differs, score.

        Raises `PrmError` if the request cannot be served.
        """
        prompt, user = parse_prompt(request["prompt"]), request.get("user_id")
        user_text = request.get("user_text") or ""
        responses = request.get("responses")
        times = Counter(responses if responses is not None else self._sampled(prompt, user, user_text))
        candidates = responses if responses is not None else list(times)
        ranked = self.rank(prompt, candidates, user, user_text, [times[text] for text in candidates])
        ranking: list[dict[str, Any]] = []
        for index, text, _ in ranked.candidates:
            extra = {self._strategy.score_name: float(ranked.scores[index])} if self._strategy.score_name else {}
            ranking.append({"text": text, "reward": float(ranked.rewards[index])} | extra)
        rest = {key: value for key, value in request.items() if key != "responses"}
        return rest | {"known_user": self._scorer.knows(user), "ranking": ranking}

    def rank(
        self,
        prompt: Prompt,
        texts: list[str],
        user: str | None = None,
        user_text: str = "",
        times: Sequence[int] | None = None,
    ) -> Ranking:
        """Rank n candidates. `times`: how often each was sampled, [n]; once if left out. Raises as `answer` does."""
        rewards = self._scorer.score(prompt, texts, user, user_text)
        counts = torch.ones(len(texts)) if times is None else torch.tensor(times)
        ranked_by, scores = self._values(prompt, texts, user, user_text, rewards, counts)
        return Ranking(rank(texts, ranked_by), rewards, scores)

    def _sampled(self, prompt: Prompt, user: str | None, user_text: str) -> list[str]:
        assert self._candidates is not None
        sampled = self._candidates.sample(prompt, self._n, self._sampling, user, user_text)
        texts = [text for text in sampled if self._scorer.reader.has_tokens(text)]
        if not texts:
            raise PrmError("every sampled response is empty; try another prompt or a higher temperature")
        return texts

    def _values(
        self, prompt: Prompt, texts: list[str], user: str | None, user_text: str, rewards: Tensor, times: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(values to rank candidates by, values to report), each [n]."""
        name, parameter = self._strategy.name, self._strategy.parameter
        if name == "soft":
            probabilities = soft(rewards, parameter, times)
            return plackett_luce(probabilities, self._sampling.seed), probabilities
        scores = rewards
        if name == "regularised":
            assert self._sampler is not None
            scores = regularised(rewards, self._sampler.logps(prompt, texts, user, user_text), parameter)
        elif name == "pessimistic":
            scores = pessimistic(*self._scorer.score(prompt, texts, user, user_text, return_std=True), parameter)
        elif name == "cautious":
            scores = cautious(self._scorer.gains(prompt, texts, user, user_text), parameter)
        return scores, scores
