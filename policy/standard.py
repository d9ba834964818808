"""Rewards on a scale of their own for each person, fixed once: some people's rewards spread more than others'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policy.rewards import trl_reward
from prm.files import read_rows, write_jsonl
from prm.scorer import Scorer
from prm.users import UserIndex

EMPTY_STANDARD = -4.0  # deviations: what an answer of nothing is worth, which no reward model can read
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class RewardScale:
    """(reward - shift) / scale: 0 is what the start policy gets from a person on average, 1 a deviation above it.

    Args:
        shift, scale: logits, float32 [n_rows], by row of the user model.
    """

    shift: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, rewards: Tensor) -> "RewardScale":
        """From each row's rewards [n_rows, n] of the same answers; where they are all alike, the scale is 1."""
        scale = rewards.float().std(1, correction=0)
        return cls(rewards.float().mean(1), torch.where(scale > _LEAST_SCALE, scale, torch.ones_like(scale)))

    def __call__(self, rewards: Tensor, rows: Tensor) -> Tensor:
        """Standardised rewards [b] of these rows [b]; NaN, which stands for an empty answer, is `EMPTY_STANDARD`."""
        return ((rewards - self.shift[rows]) / self.scale[rows]).nan_to_num(EMPTY_STANDARD)

    def save(self, path: Path, users: UserIndex) -> None:
        """JSON Lines of `user_id` (null: the unknown user), `shift`, `scale`, where `prm forget` finds a person."""
        people = [None, *users.to_json()]
        rows = zip(people, self.shift.tolist(), self.scale.tolist(), strict=True)
        write_jsonl(path, [{"user_id": u, "shift": a, "scale": b} for u, a, b in rows])

    @classmethod
    def load(cls, path: Path, users: UserIndex) -> "RewardScale":
        """What `save` wrote; a person who was forgotten since has shift 0 and scale 1."""
        shift, scale = torch.zeros(users.n_rows), torch.ones(users.n_rows)
        for _, row in read_rows(path):
            shift[users.row(row["user_id"])], scale[users.row(row["user_id"])] = row["shift"], row["scale"]
        return cls(shift, scale)


def fit_scale(
    scorer: Scorer, users: UserIndex, prompts: Sequence[Any], answers: Sequence[str], texts: dict[str, str]
) -> RewardScale:
    """The scale of everybody's rewards of the same answers, those of the start policy; empty ones are passed over.

    Args:
        texts: what people say of themselves, by id.
    """
    read = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]
    people = [None, *users.to_json()]
    flat = [(prompt, answer, user) for user in people for prompt, answer in read]
    rewards = scorer.score_batch(
        [prompt for prompt, _, _ in flat],
        [answer for _, answer, _ in flat],
        [user for _, _, user in flat],
        [texts.get(user or "", "") for _, _, user in flat],
    )
    return RewardScale.fit(rewards.view(len(people), len(read)))


def standard_reward(scorer: Scorer, scale: RewardScale, users: UserIndex) -> Callable[..., list[float]]:
    """`policy.rewards.trl_reward`, standardised; answers are read as `rerank` would show them, without outer blanks."""
    raw = trl_reward(scorer, empty=float("nan"))

    def reward(prompts: list[Any], completions: list[Any], user_id: list[str | None], **columns: Any) -> list[float]:
        answers = [(c if isinstance(c, str) else c[-1]["content"]).strip() for c in completions]
        found = torch.tensor(raw(prompts=prompts, completions=answers, user_id=user_id, **columns))
        return scale(found, torch.tensor([users.row(user) for user in user_id])).tolist()

    return reward
