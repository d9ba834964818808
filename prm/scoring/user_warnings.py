"""What to say before scores are asked for: ids that look mistyped, people of whom little is known, partial judges."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm.errors import closest
from prm.io.run_files import read_run

if TYPE_CHECKING:
    from prm.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

FEW = 5  # comparisons below which a person's own numbers are hardly theirs
_ALIKE, _NAMED = 0.8, 3


def warn_about_users(scorer: "Scorer", users: Iterable[str | None]) -> None:
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


def is_own_judge(run: str | Path, gold: str | Path, planned: Mapping[Path, Mapping[str, Any]] | None = None) -> bool:
    """Whether a judge is a run itself, the reward that it learnt from, or that of a run that it started from.

    It would win by its own measure. A run counts with its uniform model, and a copy of a run as that run.

    Args:
        planned: settings of runs that are not there yet, by folder.
    """
    from prm.checkpoint.checkpoint import digest
    from prm.models.backbones import is_run  # brings torch in

    judge, todo, seen = _folder_of(gold), [str(run)], set[Path]()
    while todo:
        place = _folder_of(todo.pop())
        if place in seen:
            continue
        seen.add(place)
        if place == judge or (is_run(place) and is_run(judge) and digest(place) == digest(judge)):
            return True
        there = read_run(place).get("config", {}) if is_run(place) else {}
        settings: Mapping[str, Any] = (planned or {}).get(place, there)
        parts = [settings.get("reward"), settings.get("start_from"), (settings.get("backbone") or {}).get("name")]
        todo += [part for part in parts if isinstance(part, str) and part]
    return False


def _folder_of(run: str | Path) -> Path:
    path = Path(run).expanduser().resolve()
    return path.parent if path.name == "uniform" else path


def warn_about_gold(run: str | Path, gold: str | Path) -> None:
    """Log a line where a judge learnt from the same data as a run."""
    learnt, known = (read_run(Path(place)).get("data", {}) for place in (run, gold))
    if learnt.get("path") and any(learnt.get(key) == known.get(key) for key in ("path", "fingerprint")):
        logger.warning("warning: %s and %s learnt from the same data: the judge shares the other's mistakes", run, gold)
