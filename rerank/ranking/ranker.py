"""Rank requests: take or sample the candidates, score them, and rank them by the chosen strategy."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from prm.data.comparison import Prompt, parse_prompt
from prm.errors import PrmError
from prm.scoring.scorer import Scorer
from rerank.ranking.candidates import Candidates
from rerank.ranking.strategies import cautious, pessimistic, plackett_luce, rank, regularised, soft
from rerank.ranking.strategy_flag import Strategy
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler


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
        rewards = self._scorer.score(prompt, candidates, user, user_text)
        counts = torch.tensor([times[text] for text in candidates])
        ranked_by, reported = self._values(prompt, candidates, user, user_text, rewards, counts)
        ranking: list[dict[str, Any]] = []
        for index, text, _ in rank(candidates, ranked_by):
            extra = {self._strategy.score_name: float(reported[index])} if self._strategy.score_name else {}
            ranking.append({"text": text, "reward": float(rewards[index])} | extra)
        rest = {key: value for key, value in request.items() if key != "responses"}
        return rest | {"known_user": self._scorer.knows(user), "ranking": ranking}

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
