"""Standardise rewards per user, with scales fixed once: some users' rewards spread more than others'."""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from policy.rewards.adapters import Completion, text_of
from policy.rewards.personal import RewardFunc, compute_rewards
from prm.checks import Positive
from prm.data.arguments import Prompts, Texts, Users
from prm.errors import PrmError
from prm.io.run_files import fitting
from prm.io.tables import read_rows, write_jsonl
from prm.metrics import Array
from prm.models.backbones import processes

logger = logging.getLogger(__name__)

SCALE_FILE = "reward_scale.jsonl"  # in a run folder
UNSCORABLE_REWARD = -4.0  # standardised reward of a response that cannot be scored
_SMALL, _NAMED = 0.1, 3  # warn of deviations below this share of the median; how many users to name
_MIN_DEVIATION = 1e-6  # below it, a user's rewards are taken as constant


class Scale(NamedTuple):
    """Mean and standard deviation of a user's rewards of the reference's responses."""

    shift: float
    scale: float

    def __call__(self, reward: float) -> float:
        """Standardise a reward; `UNSCORABLE_REWARD` for nan."""
        return UNSCORABLE_REWARD if np.isnan(reward) else (reward - self.shift) / self.scale


Scales = dict[str | None, Scale]


class _Row(TypedDict):
    user_id: str | None
    shift: float
    scale: Positive


def fix_scales(reward: RewardFunc, prompts: Prompts, responses: Texts, user_texts: dict[str | None, str]) -> Scales:
    """Fix every user's scale, from their rewards of the same responses.

    Args:
        user_texts: the text of each user; the key `None` is the generic user.

    Raises `PrmError` if a reward is infinite, or if all rewards of a user are nan.
    """
    n, m = len(responses), len(user_texts)
    users, texts = ([each for each in column for _ in range(n)] for column in zip(*user_texts.items(), strict=True))
    rewards = np.array(compute_rewards(reward, [*prompts] * m, [*responses] * m, users, texts), np.float64).reshape(
        m, n
    )
    if np.isnan(rewards).all(1).any():
        raise PrmError("the reward model cannot score any of the reference's responses: they are empty or do not fit")
    deviations = np.nanstd(rewards, 1)
    deviations[deviations < _MIN_DEVIATION] = 1.0
    _warn_of_small(user_texts, deviations)
    return {user: Scale(*map(float, both)) for user, both in zip(user_texts, zip(np.nanmean(rewards, 1), deviations))}


def _warn_of_small(users: Collection[str | None], deviations: Array) -> None:
    median = float(np.median(deviations))
    small = [
        f"{'the generic user' if user is None else repr(user)} ({deviation:.2g})"
        for user, deviation in zip(users, deviations, strict=True)
        if deviation < _SMALL * median
    ]
    if small:
        more = f" and {len(small) - _NAMED} more" if len(small) > _NAMED else ""
        logger.warning(
            "warning: rewards that hardly differ between responses (the median user's deviation is %.2g): %s%s; "
            "standardised, these differences, which may be noise, count as much as other users'",
            median,
            ", ".join(small[:_NAMED]),
            more,
        )


def load_or_fix_scales(path: Path, fix: Callable[[], Scales]) -> Scales:
    """Call `fix` once and store its scales in `path`, one line per user: a resumed run must use the same scales."""
    with processes().main_process_first():  # the other processes load it from disk
        if not path.is_file():
            write_jsonl(path, [{"user_id": user, **scale._asdict()} for user, scale in fix().items()])
        return read_scales(path)


def read_scales(path: Path) -> Scales:
    """Read the scales stored by `load_or_fix_scales`."""
    scales: Scales = {}
    for number, row in read_rows(path):
        checked = fitting(path, _Row, row, f"line {number}", "delete its folder, and train the run again")
        scales[checked["user_id"]] = Scale(checked["shift"], checked["scale"])
    return scales


def trl_standardised_reward(reward: RewardFunc, scales: Scales) -> Callable[..., list[float]]:
    """Wrap a reward, standardised per user, for TRL; responses are stripped, as the sampler's texts are."""

    def standard(
        prompts: Prompts, completions: Sequence[Completion], user_id: Users, user_text: Texts, **_: object
    ) -> list[float]:
        responses = [text_of(completion).strip() for completion in completions]
        rewards = compute_rewards(reward, prompts, responses, user_id, user_text)
        return [scales[user](value) for user, value in zip(user_id, rewards, strict=True)]

    return standard
