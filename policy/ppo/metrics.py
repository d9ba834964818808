"""Metrics of a PPO step: over all responses, per user, and sample responses to read."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np

from policy.ppo.losses import positive_kl_estimate
from policy.ppo.rollouts import Rollouts
from prm.checks import Natural
from prm.data.comparison import as_messages


class ResponseRow(TypedDict):
    """A response: `length` in tokens, `kl` and `surprise` summed over its tokens, nats; `score` may be nan."""

    user_id: str | None
    prompt: str
    response: str
    score: float
    reward: float
    length: float
    ended: bool
    kl: float
    surprise: float


class StepMetrics(TypedDict):
    """What `trend` reads of a step's metrics."""

    step: Natural
    reward: float
    kl: float
    length: float


class PpoMetrics(TypedDict):
    """`metrics.json` of a PPO run."""

    history: list[StepMetrics]


Rows = Sequence[ResponseRow]

_SAMPLES = 24  # responses per step
_USER_MEANS: tuple[Literal["reward", "kl", "length"], ...] = ("reward", "kl", "length")


def answer_rows(rollouts: Rollouts) -> list[ResponseRow]:
    """One JSON-ready row per response."""
    kl = positive_kl_estimate(rollouts.logps, rollouts.reference) * rollouts.mask
    columns = (rollouts.scores, rollouts.rewards, rollouts.mask.sum(1), rollouts.ended, kl.sum(1))
    surprise = -(rollouts.logps * rollouts.mask).sum(1)
    figures = zip(*(column.tolist() for column in (*columns, surprise)), strict=True)
    return [
        {
            "user_id": turn.user,
            "prompt": as_messages(turn.prompt)[-1].content,
            "response": response,
            "score": score,
            "reward": reward,
            "length": length,
            "ended": ended,
            "kl": kl_sum,
            "surprise": surprise_sum,
        }
        for turn, response, (score, reward, length, ended, kl_sum, surprise_sum) in zip(
            rollouts.turns, rollouts.responses, figures, strict=True
        )
    ]


def step_metrics(rows: Rows) -> dict[str, float]:
    """Means over a step's responses.

    `reward` is standardised and includes the penalty for a missing end. `kl` (per response) and `entropy` (per token)
    of the sampling policy are estimated from the sampled tokens, in nats. `length` is in tokens, with the end token.
    """
    tokens = sum(row["length"] for row in rows)
    return {
        **{name: float(np.mean([row[name] for row in rows])) for name in _USER_MEANS},
        "ended": float(np.mean([row["ended"] for row in rows])),
        "empty": float(np.mean([not row["response"] for row in rows])),
        "entropy": sum(row["surprise"] for row in rows) / tokens,
    }


def trend(history: Sequence[StepMetrics]) -> str:
    """Reward, KL and length of the first step and of the last one, in words; empty if there was no step."""
    if not history:
        return ""
    first, last = history[0], history[-1]
    return (
        f"from step {first['step']} to {last['step']}: reward {first['reward']:.2f} to {last['reward']:.2f} "
        f"(standardised), KL {first['kl']:.2f} to {last['kl']:.2f} nats, "
        f"length {first['length']:.1f} to {last['length']:.1f} tokens"
    )


def users_of_step(step: int, rows: Rows) -> list[dict[str, object]]:
    """Per user: number of responses, their mean reward, KL and length, and the mean of the scores that are not nan."""
    by_user: dict[str | None, list[ResponseRow]] = defaultdict(list)
    for row in rows:
        by_user[row["user_id"]].append(row)
    table: list[dict[str, object]] = []
    for user, user_rows in by_user.items():
        scores = [row["score"] for row in user_rows if not np.isnan(row["score"])]
        means: dict[str, float] = {name: float(np.mean([row[name] for row in user_rows])) for name in _USER_MEANS}
        score = float(np.mean(scores)) if scores else None
        table.append({"step": step, "user_id": user, "answers": len(user_rows), "score": score, **means})
    return table


def samples_of_step(step: int, rows: Rows) -> list[dict[str, object]]:
    """The first responses of a step, for inspection."""
    left_out = ("score", "surprise")
    return [
        {"step": step, **{name: value for name, value in row.items() if name not in left_out}}
        for row in rows[:_SAMPLES]
    ]
