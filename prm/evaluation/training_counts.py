"""Users grouped by the number of comparisons that a model was trained on."""

from collections.abc import Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reports read evaluations, and need no torch
    from prm.scoring.scorer import Scorer

GROUPS = (0, 1, 10, 30, 100)  # minimum number of training comparisons of each group


def counts_of(scorer: "Scorer", users: Set[str]) -> dict[str, int | None]:
    """Training comparisons of each user; 0 for users the model does not know, `None` if they were not counted."""
    return {user: scorer.judgements(user) if scorer.knows(user) else 0 for user in users}


def group_of(count: int) -> int:
    """The one of `GROUPS` that a count belongs to."""
    return max(minimum for minimum in GROUPS if count >= minimum)


def name_of(least: int) -> str:
    """A group in words: "0", "1 to 9", "100 and more"."""
    if least == GROUPS[-1]:
        return f"{least} and more"
    maximum = GROUPS[GROUPS.index(least) + 1] - 1
    return str(least) if maximum == least else f"{least} to {maximum}"
