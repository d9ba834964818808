"""The reward of a policy's own answers: a reward model, or any function, asked for each person."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from prm.data.comparison import Prompt
from prm.errors import DataError, PrmError
from prm.scoring.scorer import Scorer

# (prompts, answers, users, their own texts) -> one number each; nan for what cannot be read
Reward = Callable[[Sequence[Prompt], Sequence[str], Sequence[str | None], Sequence[str]], Sequence[float]]


def ask(
    reward: Reward, prompts: Sequence[Prompt], answers: Sequence[str], users: Sequence[str | None], texts: Sequence[str]
) -> list[float]:
    """What the reward says of each answer. Raises `PrmError` where it is infinite, or not one number for each."""
    found = list(map(float, reward(prompts, answers, users, texts)))
    if len(found) != len(answers):
        raise PrmError(f"the reward gave {len(found)} numbers for {len(answers)} answers: it must give one for each")
    if np.isinf(found).any():
        raise PrmError("a reward is infinite: give a number, or nan for an answer that cannot be read")
    return found


class PersonalReward:
    """A reward model asked for the answers of a policy.

    An empty answer, or one of which the tokenizer leaves nothing, is read by the state at its end where the model can
    (pooling `last`, soft prompts, policies of P-DPO); the mean over no tokens is no number, and such an answer gets
    nan. So does one that is no text that fits into the reward model's `max_length`.

    Args:
        playing: makes the context in which the scorer reads, where it shares a language model with others.
    """

    def __init__(self, scorer: Scorer, playing: Callable[[], AbstractContextManager[None]] = nullcontext):
        self.scorer, self._playing = scorer, playing

    def __call__(
        self, prompts: Sequence[Prompt], answers: Sequence[str], users: Sequence[str | None], texts: Sequence[str]
    ) -> list[float]:
        read = [answer if self.scorer.fits(answer) else "" for answer in answers]
        asked = list(zip(prompts, read, users, texts, strict=True))
        can = [i for i, row in enumerate(asked) if row[1] or self.scorer.scores_empty]
        out = [float("nan")] * len(asked)
        if not can:
            return out
        with self._playing():
            rewards = self._scores([asked[i] for i in can])
        for i, reward in zip(can, rewards, strict=True):
            out[i] = reward
        return out

    def _scores(self, rows: list[tuple[Any, str, str | None, str]]) -> list[float]:
        """Of all rows at once; where one of them does not fit, of one half after the other."""
        prompts, answers, users, texts = (list(column) for column in zip(*rows, strict=True))
        try:
            return self.scorer.score_batch(prompts, answers, users, texts, empty=True).tolist()
        except DataError:
            if len(rows) == 1:
                return [float("nan")]
        half = len(rows) // 2
        return [*self._scores(rows[:half]), *self._scores(rows[half:])]
