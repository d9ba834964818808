"""Scorers whose rewards are given."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prm.data.comparison import Comparison

Reward = Callable[[str, str, str | None, str], float]


class FakeScorer:
    """Rewards by a rule on (prompt, response, user, user text); unknown people are read as `None`."""

    def __init__(self, users: Sequence[str], reward: Reward):
        self.users, self.reward, self.reader = list(users), reward, self

    def knows(self, user: str | None) -> bool:
        return user in self.users

    def check_comparison(self, c: Comparison) -> None:
        """It reads everything."""

    def has_tokens(self, response: str) -> bool:
        return bool(response.strip())

    def judgements(self, user: str | None) -> int | None:
        return 30 if self.knows(user) else None

    def score_batch(self, prompts: Any, responses: Any, users: Any, texts: Any = None) -> Tensor:
        rows = zip(prompts, responses, users, texts or [""] * len(prompts), strict=True)
        return torch.tensor([self.reward(p, y, u if self.knows(u) else None, t) for p, y, u, t in rows])

    def margin_batch(self, prompts: Any, first: Any, second: Any, users: Any, texts: Any = None) -> Tensor:
        return self.score_batch(prompts, first, users, texts) - self.score_batch(prompts, second, users, texts)


def judged(user: str, prompt: str, chosen: str, rejected: str, **more: Any) -> Comparison:
    return Comparison(user, prompt, chosen, rejected, **more)


def by_length(sign: float) -> Reward:
    """Longer is better, or shorter."""
    return lambda prompt, response, user, text: sign * len(response.split())
