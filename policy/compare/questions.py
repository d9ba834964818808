"""Who is asked what in a comparison, and which group they belong to."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from prm.data.comparison import Comparison, prompt_key
from prm.data.splits import pair_key
from prm.errors import PrmError
from prm.evaluation.groups import group_of_people
from prm.metrics import average

MANY, FEW = "with the many", "with the few"


def choose_cases(
    train: Sequence[Comparison],
    held: Sequence[Comparison],
    people: int,
    prompts: int,
    seed: int,
    fits: Callable[[Comparison], bool],
) -> list[Comparison]:
    """One held-out judgement of each question: a person asks a prompt. All people ask the same prompts where they can.

    Ordered by prompt. Ties, which choose no answer, are passed over. Raises `PrmError` where nothing is left.

    Args:
        people: those of whom most can be learnt; 0 takes all.
        fits: whether the person can be judged, and the prompt leaves room for an answer.
    """
    learnt = Counter(c.user_id for c in train if not c.is_tie)
    asked: dict[str, dict[str, Comparison]] = defaultdict(dict)
    for c in held:
        if not c.is_tie and c.user_id in learnt and fits(c):
            asked[c.user_id].setdefault(prompt_key(c.prompt), c)
    if not asked:
        raise PrmError("no held-out prompt is asked by anybody whom the runs know, can be judged and leaves room")
    chosen = sorted(asked, key=lambda user: (-learnt[user], user))[: people or None]

    def place(key: str) -> str:
        return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()

    found = [
        (place(key), user, asked[user][key]) for user in chosen for key in sorted(asked[user], key=place)[:prompts]
    ]
    return [c for _, _, c in sorted(found, key=lambda row: row[:2])]


def groups_of(key: str, everything: Sequence[Comparison], cases: Sequence[Comparison]) -> dict[str, str]:
    """The group of everybody who asks, by a metadata field; without one, halves by how often they side with others.

    Raises `PrmError` where somebody has no value of the field.
    """
    users = list(dict.fromkeys(c.user_id for c in cases))
    if not key:
        return sides(everything, users)
    found = group_of_people(key, everything)
    if lacking := [user for user in users if user not in found]:
        raise PrmError(f"config key 'group_by': {lacking[0]!r} has no {key!r}, and {len(lacking) - 1} others")
    return {user: found[user] for user in users}


def sides(everything: Sequence[Comparison], users: Sequence[str]) -> dict[str, str]:
    """Halves of these people by the share of their judgements that most others who judged the pair agree with."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    judged = [c for c in everything if not c.is_tie]
    for c in judged:
        votes[pair_key(c)][c.chosen] += 1
    shares = []
    for c in judged:
        others = votes[pair_key(c)]
        against = others.total() - others[c.chosen]
        agreeing = others[c.chosen] - 1
        shares.append(float("nan") if agreeing == against else float(agreeing > against))
    own = {user: [s for s, c in zip(shares, judged, strict=True) if c.user_id == user] for user in users}
    agrees = {user: average(values, [user] * len(values)).value for user, values in own.items()}
    # of whom nothing can be told sides with the many, as most do
    order = sorted(users, key=lambda user: (-(agrees[user] if agrees[user] == agrees[user] else 2.0), user))
    half = (len(order) + 1) // 2
    return {user: MANY if place < half else FEW for place, user in enumerate(order)}
