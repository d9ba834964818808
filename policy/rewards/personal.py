"""Rewards of a policy's responses for each user: from a reward model or any function."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from prm.data.arguments import Prompts, Texts, Users
from prm.data.comparison import PromptLike
from prm.errors import DataError, PrmError
from prm.scoring.scorer import Scorer

# (prompts, responses, users, user texts) -> one reward each; nan for a response that cannot be scored
RewardFunc = Callable[[Prompts, Texts, Users, Texts], Sequence[float]]


def compute_rewards(reward: RewardFunc, prompts: Prompts, responses: Texts, users: Users, texts: Texts) -> list[float]:
    """Compute each response's reward. Raises `PrmError` if one is infinite or there is not one per response."""
    rewards = list(map(float, reward(prompts, responses, users, texts)))
    if len(rewards) != len(responses):
        raise PrmError(
            f"the reward function returned {len(rewards)} numbers for {len(responses)} responses: return one each"
        )
    if np.isinf(rewards).any():
        raise PrmError("a reward is infinite: return a number, or nan for a response that cannot be scored")
    return rewards


class PersonalReward:
    """A reward model as the reward of a policy's responses.

    An empty response, or one without tokens, is scored by the hidden state at its end if the model can do so (pooling
    `last`, soft prompts, policies of P-DPO), and gets nan otherwise (mean pooling). A response that exceeds the reward
    model's `max_length` gets nan too.

    Args:
        context: makes the context to score in, if the scorer shares a language model with other roles.
    """

    def __init__(self, scorer: Scorer, context: Callable[[], AbstractContextManager[None]] = nullcontext):
        self.scorer, self._context = scorer, context

    def __call__(self, prompts: Prompts, responses: Texts, users: Users, texts: Texts) -> list[float]:
        readable = [response if self.scorer.reader.has_tokens(response) else "" for response in responses]
        rows = list(zip(prompts, readable, users, texts, strict=True))
        scorable = [i for i, row in enumerate(rows) if row[1] or self.scorer.scores_empty]
        scores = [float("nan")] * len(rows)
        if not scorable:
            return scores
        with self._context():
            rewards = self._scores([rows[i] for i in scorable])
        for i, reward in zip(scorable, rewards, strict=True):
            scores[i] = reward
        return scores

    def _scores(self, rows: Sequence[tuple[PromptLike, str, str | None, str]]) -> list[float]:
        """Score all rows at once; if one of them does not fit, score each half separately."""
        prompts, responses, users, texts = (list(column) for column in zip(*rows, strict=True))
        try:
            return self.scorer.score_batch(prompts, responses, users, texts, empty=True).tolist()
        except DataError:
            if len(rows) == 1:
                return [float("nan")]
        half = len(rows) // 2
        return [*self._scores(rows[:half]), *self._scores(rows[half:])]
