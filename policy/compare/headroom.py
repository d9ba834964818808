"""The share of the oracle headroom that the picks of best-of-N arms capture.

Headroom is the judge's reward of its own pick among the N responses minus that of a random one of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policy.compare.judging import Gold
from policy.compare.measure import Answered, Candidate
from prm.data.baselines import count_words
from prm.data.comparison import Comparison, prompt_key
from prm.metrics import Estimate, over_both, share_over_both
from rerank.curves.best_of import GENERIC, LONGEST, ORACLE, PERSONAL, RANDOM, UNIFORM, gains

_REWARDS = {PERSONAL: "personal", GENERIC: "generic", UNIFORM: "uniform"}  # keys of a candidate


@dataclass(frozen=True)
class Headroom:
    """The headroom of an arm's pools, and the share of it that each pick captures.

    Args:
        headroom: mean over users, in the unit of the gold reward.
        share: by who picks: mean gain over a random response, divided by the mean headroom; 1 for the oracle. `None` if
            the headroom is 0 or not finite.
    """

    headroom: Estimate
    share: Mapping[str, Estimate | None]


def headrooms(arms: Mapping[str, Answered], gold: Gold, cases: Sequence[Comparison]) -> dict[str, Headroom]:
    """The headroom of each arm that picks the best of two or more; the judge rewards every response of their pools."""
    pools = {name: [row["pool"] for row in arm.rows] for name, arm in arms.items() if arm.best_of > 1}
    judged = _judged(gold, cases, pools.values()) if pools else {}
    users, prompts = [c.user_id for c in cases], [prompt_key(c.prompt) for c in cases]
    found = {}
    for name, of_arm in pools.items():
        by_case = [_gains(pool, [judged[i, c["response"]] for c in pool]) for i, pool in enumerate(of_arm)]
        parts = np.array([list(of_case.values()) for of_case in by_case]).T
        shares = share_over_both(parts, parts[-1], users, prompts)
        found[name] = Headroom(over_both(parts[-1], users, prompts), dict(zip(by_case[0], shares, strict=True)))
    return found


def _judged(
    gold: Gold, cases: Sequence[Comparison], pools: Iterable[Sequence[Sequence[Candidate]]]
) -> dict[tuple[int, str], float]:
    """The judge's reward by case and response; arms whose pools share responses ask once."""
    asked = list(dict.fromkeys((i, c["response"]) for of_arm in pools for i, pool in enumerate(of_arm) for c in pool))
    rewards = gold([cases[i] for i, _ in asked], [text for _, text in asked])
    return dict(zip(asked, rewards.tolist(), strict=True))


def _gains(pool: Sequence[Candidate], judged: Sequence[float]) -> dict[str, float]:
    """The judge's reward of each pick minus that of a random response, the oracle's last; ties are drawn by lot.

    A response that the judge cannot reward (NaN) counts like the worst of its pool.
    """
    rewards = np.array(judged, np.float64)
    known = rewards[~np.isnan(rewards)]
    rewards = np.where(np.isnan(rewards), known.min() if len(known) else 0.0, rewards)
    rows: list[Mapping[str, object]] = [*pool]
    picks: dict[str, Sequence[float]] = {
        name: [r if isinstance(r := row[key], int | float) else float("-inf") for row in rows]
        for name, key in _REWARDS.items()
        if key in rows[0]
    }
    picks[LONGEST] = [count_words(c["response"]) for c in pool]
    picks[RANDOM] = [0.0] * len(pool)
    picks[ORACLE] = rewards.tolist()
    return {name: float(gains(values, rewards)[-1]) for name, values in picks.items()}
