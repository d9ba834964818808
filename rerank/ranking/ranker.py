"""Requests answered: candidates taken or sampled, scored, and ranked in the way that was chosen."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from prm.data.comparison import Prompt, parse_prompt
from prm.errors import PrmError
from prm.scoring.scorer import Scorer
from rerank.ranking.candidates import Candidates
from rerank.ranking.strategies import cautious, drawn, pessimistic, rank, regularised, soft
from rerank.ranking.strategy_flag import Strategy
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler


class Ranker:
    """Ranks answers for people.

    Args:
        sampler: writes answers where a request has none, and says how likely they are to be `regularised`.
        n: answers to sample.
        sampling: how; its seed is also that of the `soft` strategy.
    """

    def __init__(self, scorer: Scorer, sampler: Sampler | None, n: int, sampling: Sampling, strategy: Strategy):
        self._scorer, self._sampler = scorer, sampler
        self._candidates = Candidates(sampler, scorer) if sampler is not None else None
        self._n, self._sampling, self._strategy = n, sampling, strategy

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request with `ranking` and `known_user`: best first, each with its reward and what it is ranked by.

        Raises `PrmError` where it cannot be served.
        """
        prompt, user = parse_prompt(request["prompt"]), request.get("user_id")
        user_text = request.get("user_text") or ""
        given = request.get("responses")
        times = Counter(given if given is not None else self._sampled(prompt, user, user_text))
        candidates = given if given is not None else list(times)
        rewards = self._scorer.score(prompt, candidates, user, user_text)
        counts = torch.tensor([times[text] for text in candidates])
        ranked_by, shown = self._values(prompt, candidates, user, user_text, rewards, counts)
        ranking: list[dict[str, Any]] = []
        for place, text, _ in rank(candidates, ranked_by):
            more = {self._strategy.shown: float(shown[place])} if self._strategy.shown else {}
            ranking.append({"text": text, "reward": float(rewards[place])} | more)
        rest = {key: value for key, value in request.items() if key != "responses"}
        return rest | {"known_user": self._scorer.knows(user), "ranking": ranking}

    def _sampled(self, prompt: Prompt, user: str | None, user_text: str) -> list[str]:
        assert self._candidates is not None
        found = self._candidates.sample(prompt, self._n, self._sampling, user, user_text)
        texts = [text for text in found if self._scorer.fits(text)]
        if not texts:
            raise PrmError("every sampled answer is empty; try another prompt or a higher temperature")
        return texts

    def _values(
        self, prompt: Prompt, texts: list[str], user: str | None, user_text: str, rewards: Tensor, times: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(what candidates are ranked by, what is shown of it), each [n]."""
        name, number = self._strategy.name, self._strategy.number
        if name == "soft":
            probabilities = soft(rewards, number, times)
            return drawn(probabilities, self._sampling.seed), probabilities
        found = rewards
        if name == "regularised":
            assert self._sampler is not None
            found = regularised(rewards, self._sampler.logps(prompt, texts, user, user_text), number)
        elif name == "pessimistic":
            found = pessimistic(*self._scorer.score(prompt, texts, user, user_text, return_std=True), number)
        elif name == "cautious":
            found = cautious(self._scorer.gains(prompt, texts, user, user_text), number)
        return found, found
