"""The reward of PPO: a reward model asked for each person, on a scale of their own that is fixed before training."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from policy.roles import Roles
from prm import checkpoint as checkpoints
from prm.backbones import weights_fingerprint
from prm.comparison import Prompt
from prm.conditioned import unconditioned
from prm.errors import DataError, PrmError
from prm.files import read_rows, write_jsonl
from prm.scorer import Scorer

logger = logging.getLogger(__name__)

# (prompts, answers, users, their own texts) -> one number each; nan for what cannot be read
Reward = Callable[[Sequence[Prompt], Sequence[str], Sequence[str | None], Sequence[str]], Sequence[float]]

UNREAD = -4.0  # deviations from a person's mean: what an answer is worth that the reward model cannot read


class PersonalReward:
    """A reward run as PPO asks it. On the policy's own language model it reads with that, and takes no memory.

    It can share where its backbone's weights and dtype are those below the policy's adapters, and it trained no more
    of them than an adapter. `policy sft` changes weights: a policy that starts from such a run shares with reward
    models that were trained on that run. Any other is loaded beside it. A model that was cut is read at its depth, but
    the layers above are run, too.

    An empty answer is read by the state at its end where the model can (pooling `last`, soft prompts, policies of
    P-DPO); the mean over no tokens is no number, and such an answer gets nan. So does one that is no text that fits
    into the reward model's `max_length`.
    """

    def __init__(self, folder: str | Path, roles: Roles):
        self._roles, self.shared = roles, _can_share(Path(folder), roles)
        if self.shared:
            self.scorer = Scorer(checkpoints.load_onto(folder, roles.policy.base_model))  # type: ignore[arg-type]
            roles.take_in_reward(self.scorer.model.user_model, Path(folder) / "adapter")
        else:
            self.scorer = Scorer.from_pretrained(folder, device=roles.policy.device)
        logger.info("%s %s", folder, "reads with the policy's backbone" if self.shared else "has a backbone of its own")

    def __call__(
        self, prompts: Sequence[Prompt], answers: Sequence[str], users: Sequence[str | None], texts: Sequence[str]
    ) -> list[float]:
        asked = list(zip(prompts, answers, users, texts, strict=True))
        can = [i for i, row in enumerate(asked) if row[1] or self.scorer.reads_empty]
        out = [float("nan")] * len(asked)
        if not can:
            return out
        with self._roles.playing("reward") if self.shared else nullcontext():
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


def _can_share(folder: Path, roles: Roles) -> bool:
    config, backbone = checkpoints.read_config(folder), roles.policy.base_model
    if config["kind"] != checkpoints.REWARD_MODEL or (folder / "backbone").is_dir():
        return False
    dtype = next(backbone.parameters()).dtype
    with unconditioned(backbone) as plain:  # type: ignore[arg-type]
        same = weights_fingerprint(plain) == config["fingerprints"]["backbone"]
    return same and config["backbone"]["dtype"] == {torch.bfloat16: "bfloat16"}.get(dtype, "float32")


class Scale(NamedTuple):
    """Mean and deviation of a person's rewards for the reference's answers."""

    shift: float
    scale: float

    def __call__(self, reward: float) -> float:
        """The reward in deviations from that mean; `UNREAD` for nan."""
        return UNREAD if np.isnan(reward) else (reward - self.shift) / self.scale


Scales = dict[str | None, Scale]


def fix_scales(
    reward: Reward, prompts: Sequence[Prompt], answers: Sequence[str], people: dict[str | None, str]
) -> Scales:
    """Everybody's scale, from what they would say of the same answers.

    Args:
        people: each one's own text.

    Raises `PrmError` where one is infinite, or somebody's cannot be read at all.
    """
    n, m = len(answers), len(people)
    users, texts = ([each for each in column for _ in range(n)] for column in zip(*people.items(), strict=True))
    rewards = np.array(reward([*prompts] * m, [*answers] * m, users, texts), np.float64).reshape(m, n)
    if np.isinf(rewards).any():
        raise PrmError("a reward is infinite")
    if np.isnan(rewards).all(1).any():
        raise PrmError("the reference's answers are all empty, and the reward model cannot read them")
    deviations = np.nanstd(rewards, 1)
    deviations[deviations < 1e-8] = 1.0  # someone to whom all answers are the same
    return {user: Scale(*map(float, both)) for user, both in zip(people, zip(np.nanmean(rewards, 1), deviations))}


def write_scales(path: Path, scales: Scales) -> None:
    """One line per person."""
    write_jsonl(path, [{"user_id": user, **scale._asdict()} for user, scale in scales.items()])


def read_scales(path: Path) -> Scales:
    """What `write_scales` wrote."""
    return {row["user_id"]: Scale(row["shift"], row["scale"]) for _, row in read_rows(path)}
