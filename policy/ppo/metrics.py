"""Metrics of a PPO step: over all responses, per user, and sample responses to read."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from policy.ppo.losses import positive_kl_estimate
from policy.ppo.rollouts import Rollouts
from prm.data.comparison import as_messages

Rows = Sequence[dict[str, Any]]

_SAMPLES = 24  # responses per step


def answer_rows(rollouts: Rollouts) -> list[dict[str, Any]]:
    """One JSON-ready row per response; `kl` and `surprise` are sums over its tokens, nats."""
    kl = positive_kl_estimate(rollouts.logps, rollouts.reference) * rollouts.mask
    columns = {
        "score": rollouts.scores,
        "reward": rollouts.rewards,
        "length": rollouts.mask.sum(1),
        "ended": rollouts.ended,
        "kl": kl.sum(1),
        "surprise": -(rollouts.logps * rollouts.mask).sum(1),
    }
    lists = {name: column.tolist() for name, column in columns.items()}
    return [
        {"user_id": turn.user, "prompt": as_messages(turn.prompt)[-1].content, "response": response}
        | {name: column[i] for name, column in lists.items()}
        for i, (turn, response) in enumerate(zip(rollouts.turns, rollouts.responses, strict=True))
    ]


def step_metrics(rows: Rows) -> dict[str, float]:
    """Means over a step's responses.

    `reward` is standardised and includes the penalty for a missing end. `kl` (per response) and `entropy` (per token)
    of the sampling policy are estimated from the sampled tokens, in nats. `length` is in tokens, with the end token.
    """
    tokens = sum(row["length"] for row in rows)
    return {
        **{name: float(np.mean([row[name] for row in rows])) for name in ("reward", "kl", "length", "ended")},
        "empty": float(np.mean([not row["response"] for row in rows])),
        "entropy": sum(row["surprise"] for row in rows) / tokens,
    }


def trend(history: Sequence[dict[str, float]]) -> str:
    """Reward, KL and length of the first step and of the last one, in words; empty if there was no step."""
    if not history:
        return ""
    first, last = history[0], history[-1]
    return (
        f"from step {first['step']} to {last['step']}: reward {first['reward']:.2f} to {last['reward']:.2f} "
        f"(standardised), KL {first['kl']:.2f} to {last['kl']:.2f} nats, "
        f"length {first['length']:.1f} to {last['length']:.1f} tokens"
    )


def users_of_step(step: int, rows: Rows) -> list[dict[str, Any]]:
    """Per user: number of responses, their mean reward, KL and length, and the mean of the scores that are not nan."""
    by_user: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_user[row["user_id"]].append(row)
    table = []
    for user, user_rows in by_user.items():
        scores = [row["score"] for row in user_rows if not np.isnan(row["score"])]
        means = {name: float(np.mean([row[name] for row in user_rows])) for name in ("reward", "kl", "length")}
        score = float(np.mean(scores)) if scores else None
        table.append({"step": step, "user_id": user, "answers": len(user_rows), "score": score, **means})
    return table


def samples_of_step(step: int, rows: Rows) -> list[dict[str, Any]]:
    """The first responses of a step, for inspection."""
    columns = ("user_id", "prompt", "response", "reward", "kl", "length", "ended")
    return [{"step": step} | {name: row[name] for name in columns} for row in rows[:_SAMPLES]]
