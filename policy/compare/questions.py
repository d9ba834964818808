"""The cases of a comparison (held-out prompts with their users), and the users' groups."""

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
    held_out: Sequence[Comparison],
    max_users: int,
    max_prompts: int,
    seed: int,
    fits: Callable[[Comparison], bool],
) -> list[Comparison]:
    """Choose one held-out comparison for each user and prompt, with the same prompts for all users if possible.

    Ordered by prompt. Ties are left out. Raises `PrmError` if nothing is left.

    Args:
        max_users: maximum number of users, those with most training comparisons first; 0 takes all.
        max_prompts: maximum number of prompts for each user.
        fits: whether the judge can judge for the user, and a response fits after the prompt.
    """
    n_train = Counter(c.user_id for c in train if not c.is_tie)
    by_user: dict[str, dict[str, Comparison]] = defaultdict(dict)
    for c in held_out:
        if not c.is_tie and c.user_id in n_train and fits(c):
            by_user[c.user_id].setdefault(prompt_key(c.prompt), c)
    if not by_user:
        raise PrmError(
            "no held-out prompt has a user with training comparisons whom the judge can judge, and room for a response"
        )
    chosen = sorted(by_user, key=lambda user: (-n_train[user], user))[: max_users or None]

    def order(key: str) -> str:
        return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()

    rows = [
        (order(key), user, by_user[user][key])
        for user in chosen
        for key in sorted(by_user[user], key=order)[:max_prompts]
    ]
    return [c for _, _, c in sorted(rows, key=lambda row: row[:2])]


def groups_of(key: str, comparisons: Sequence[Comparison], cases: Sequence[Comparison]) -> dict[str, str]:
    """The group of each user by a metadata field; without one, halves by how often they agree with the majority.

    Raises `PrmError` if a user has no value of the field.
    """
    users = list(dict.fromkeys(c.user_id for c in cases))
    if not key:
        return sides(comparisons, users)
    groups = group_of_people(key, comparisons)
    if missing := [user for user in users if user not in groups]:
        raise PrmError(f"config key 'group_by': {missing[0]!r} has no {key!r}, and {len(missing) - 1} others")
    return {user: groups[user] for user in users}


def sides(comparisons: Sequence[Comparison], users: Sequence[str]) -> dict[str, str]:
    """Divide the users in halves by the share of their comparisons that agree with the majority of other users."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    decided = [c for c in comparisons if not c.is_tie]
    for c in decided:
        votes[pair_key(c)][c.chosen] += 1
    shares = []
    for c in decided:
        others = votes[pair_key(c)]
        against = others.total() - others[c.chosen]
        agreeing = others[c.chosen] - 1
        shares.append(float("nan") if agreeing == against else float(agreeing > against))
    by_user = {user: [s for s, c in zip(shares, decided, strict=True) if c.user_id == user] for user in users}
    agrees = {user: average(values, [user] * len(values)).value for user, values in by_user.items()}
    # users without a share (NaN) count as agreeing, as most users do
    order = sorted(users, key=lambda user: (-(agrees[user] if agrees[user] == agrees[user] else 2.0), user))
    half = (len(order) + 1) // 2
    return {user: MANY if i < half else FEW for i, user in enumerate(order)}
