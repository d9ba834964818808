"""What a step of PPO tells: figures of all answers, figures by person, and a few answers to read."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from policy.ppo.losses import positive_kl_estimate
from policy.ppo.rollouts import Rollouts
from prm.data.comparison import as_messages

Rows = Sequence[dict[str, Any]]

_SAMPLES = 24  # answers per table


def answer_rows(found: Rollouts) -> list[dict[str, Any]]:
    """One JSON-ready row per answer; sums over its tokens in nats."""
    kl = positive_kl_estimate(found.logps, found.reference) * found.mask
    columns = {
        "score": found.scores,
        "reward": found.rewards,
        "length": found.mask.sum(1),
        "ended": found.ended,
        "kl": kl.sum(1),
        "surprise": -(found.logps * found.mask).sum(1),
    }
    lists = {name: column.tolist() for name, column in columns.items()}
    return [
        {"user_id": turn.user, "prompt": as_messages(turn.prompt)[-1].content, "response": answer}
        | {name: column[i] for name, column in lists.items()}
        for i, (turn, answer) in enumerate(zip(found.turns, found.answers, strict=True))
    ]


def step_metrics(rows: Rows) -> dict[str, float]:
    """Means over a step's answers.

    `reward` is scaled and less the penalty of a missing end, `kl` and `entropy` are of the policy that drew them, in
    nats, per answer and per token, both estimated from the tokens drawn; `length` counts tokens, the end among them.
    """
    tokens = sum(row["length"] for row in rows)
    return {
        **{name: float(np.mean([row[name] for row in rows])) for name in ("reward", "kl", "length", "ended")},
        "empty": float(np.mean([not row["response"] for row in rows])),
        "entropy": sum(row["surprise"] for row in rows) / tokens,
    }


def people_of_step(step: int, rows: Rows) -> list[dict[str, Any]]:
    """Per person: number of answers, their mean reward, KL and length, and the mean score of those that were read."""
    by_person: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_person[row["user_id"]].append(row)
    out = []
    for user, own in by_person.items():
        scores = [row["score"] for row in own if not np.isnan(row["score"])]
        means = {name: float(np.mean([row[name] for row in own])) for name in ("reward", "kl", "length")}
        score = float(np.mean(scores)) if scores else None
        out.append({"step": step, "user_id": user, "answers": len(own), "score": score, **means})
    return out


def samples_of_step(step: int, rows: Rows) -> list[dict[str, Any]]:
    """The first answers of a step, to be read."""
    kept = ("user_id", "prompt", "response", "reward", "kl", "length", "ended")
    return [{"step": step} | {name: row[name] for name in kept} for row in rows[:_SAMPLES]]
