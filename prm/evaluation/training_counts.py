"""People by how many of their judgements a model has learnt from."""

from collections.abc import Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reports read evaluations, and need no torch
    from prm.scoring.scorer import Scorer

GROUPS = (0, 1, 10, 30, 100)  # fewest judgements of the people who are put together


def counts_of(scorer: "Scorer", users: Set[str]) -> dict[str, int | None]:
    """Comparisons that each person's numbers rest on; 0 for whom the model does not know, `None` if not counted."""
    return {user: scorer.judgements(user) if scorer.knows(user) else 0 for user in users}


def group_of(count: int) -> int:
    """The one of `GROUPS` that a count belongs to."""
    return max(least for least in GROUPS if count >= least)


def name_of(least: int) -> str:
    """A group in words: "0", "1 to 9", "100 and more"."""
    if least == GROUPS[-1]:
        return f"{least} and more"
    most = GROUPS[GROUPS.index(least) + 1] - 1
    return str(least) if most == least else f"{least} to {most}"
