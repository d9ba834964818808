"""What to say before scores are asked for: ids that look mistyped, people of whom little is known, partial judges."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prm.errors import closest
from prm.run_files import read_run

if TYPE_CHECKING:
    from prm.scorer import Scorer

logger = logging.getLogger(__name__)

FEW = 5  # comparisons below which a person's own numbers are hardly theirs
_ALIKE, _NAMED = 0.8, 3


def warn_of_askers(scorer: "Scorer", users: Iterable[str | None]) -> None:
    """Log a line of the strangers whose ids are close to known ones, and one of those who rest on few comparisons."""
    asked = [user for user in dict.fromkeys(users) if user]
    strangers = [user for user in asked if not scorer.knows(user)][:_NAMED]  # each is compared with everybody
    meant = {user: near for user in strangers if (near := closest(user, scorer.users, _ALIKE))}
    if meant:
        hints = ", ".join(f"{user!r} (did you mean {near!r}?)" for user, near in meant.items())
        logger.warning("warning: not in the model: %s", hints)
    counts = {user: scorer.judgements(user) for user in asked}
    few = [f"{user!r} ({n})" for user, n in counts.items() if n is not None and n < FEW]
    if few:
        more = f" and {len(few) - _NAMED} more people" if len(few) > _NAMED else ""
        what = "what is said of them is hardly more than of a stranger"
        logger.warning(
            "warning: learnt from fewer than %d comparisons: %s%s; %s", FEW, ", ".join(few[:_NAMED]), more, what
        )


def warn_of_gold(run: str | Path, gold: str | Path) -> None:
    """Log a line where a judge is the reward that a run learnt from, or learnt from the same data."""
    told, judge = read_run(Path(run)), read_run(Path(gold))
    reward = told.get("config", {}).get("reward")
    if isinstance(reward, str) and reward and Path(reward).resolve() == Path(gold).resolve():
        logger.warning("warning: %s was trained on the rewards of %s, which now judges it", run, gold)
        return
    learnt, known = told.get("data", {}), judge.get("data", {})
    if learnt.get("path") and any(learnt.get(key) == known.get(key) for key in ("path", "fingerprint")):
        logger.warning("warning: %s and %s learnt from the same data: the judge shares the other's mistakes", run, gold)
