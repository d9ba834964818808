"""Rewards on a scale of their own for each person, fixed once: some people's rewards spread more than others'."""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from policy.rewards.personal import Reward, ask
from prm.checks import Positive
from prm.data.comparison import Prompt
from prm.errors import PrmError
from prm.io.run_files import refuse_unfit
from prm.io.tables import read_rows, write_jsonl
from prm.metrics import Array
from prm.models.backbones import processes

logger = logging.getLogger(__name__)

SCALE_FILE = "reward_scale.jsonl"  # in a run folder
UNREAD = -4.0  # deviations from a person's mean: what an answer is worth that the reward cannot read
_SMALL, _NAMED = 0.1, 3  # of the median deviation: what is warned of
_LEAST = 1e-6  # deviation of someone to whom all answers are the same


class Scale(NamedTuple):
    """Mean and deviation of a person's rewards for the reference's answers."""

    shift: float
    scale: float

    def __call__(self, reward: float) -> float:
        """The reward in deviations from that mean; `UNREAD` for nan."""
        return UNREAD if np.isnan(reward) else (reward - self.shift) / self.scale


Scales = dict[str | None, Scale]


class _Kept(TypedDict):
    user_id: str | None
    shift: float
    scale: Positive


def fix_scales(
    reward: Reward, prompts: Sequence[Prompt], answers: Sequence[str], people: dict[str | None, str]
) -> Scales:
    """Everybody's scale, from what they would say of the same answers.

    Args:
        people: each one's own text.

    Raises `PrmError` where a reward is infinite, or somebody's cannot be read at all.
    """
    n, m = len(answers), len(people)
    users, texts = ([each for each in column for _ in range(n)] for column in zip(*people.items(), strict=True))
    rewards = np.array(ask(reward, [*prompts] * m, [*answers] * m, users, texts), np.float64).reshape(m, n)
    if np.isnan(rewards).all(1).any():
        raise PrmError("the reward model cannot read any of the reference's answers: they are empty, or do not fit")
    deviations = np.nanstd(rewards, 1)
    deviations[deviations < _LEAST] = 1.0
    _warn_of_small(people, deviations)
    return {user: Scale(*map(float, both)) for user, both in zip(people, zip(np.nanmean(rewards, 1), deviations))}


def _warn_of_small(people: Collection[str | None], deviations: Array) -> None:
    usual = float(np.median(deviations))
    small = [
        f"{'the unknown user' if user is None else repr(user)} ({deviation:.2g})"
        for user, deviation in zip(people, deviations, strict=True)
        if deviation < _SMALL * usual
    ]
    if small:
        more = f" and {len(small) - _NAMED} more" if len(small) > _NAMED else ""
        logger.warning(
            "warning: rewards that hardly differ from answer to answer (the median person's by %.2g): %s%s; on a scale "
            "of their own these differences count as much as anybody's, noise or not",
            usual,
            ", ".join(small[:_NAMED]),
            more,
        )


def kept_scales(path: Path, fix: Callable[[], Scales]) -> Scales:
    """What `fix` makes, kept in `path` as one line per person: a run that is taken up must not measure them anew."""
    with processes().main_process_first():  # the others find it on disk
        if not path.is_file():
            write_jsonl(path, [{"user_id": user, **scale._asdict()} for user, scale in fix().items()])
        return read_scales(path)


def read_scales(path: Path) -> Scales:
    """What `kept_scales` has kept."""
    found: Scales = {}
    for number, row in read_rows(path):
        refuse_unfit(path, _Kept, row, f"line {number}", "delete the folder it lies in, and train the run again")
        found[row["user_id"]] = Scale(row["shift"], row["scale"])
    return found


def trl_standard(reward: Reward, scales: Scales) -> Callable[..., list[float]]:
    """A reward on everybody's scale, as TRL calls it; answers are read as the sampler shows them, stripped."""

    def standard(
        prompts: list[Any], completions: list[Any], user_id: list[str | None], user_text: list[str], **_: Any
    ) -> list[float]:
        answers = [(c if isinstance(c, str) else c[-1]["content"]).strip() for c in completions]
        rewards = ask(reward, prompts, answers, user_id, user_text)
        return [scales[user](found) for user, found in zip(user_id, rewards, strict=True)]

    return standard
