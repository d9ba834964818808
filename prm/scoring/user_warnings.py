"""Warnings before scoring: ids that look mistyped, users with few comparisons, and judges that are not independent."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prm.errors import closest, counted
from prm.io.folders import is_run
from prm.io.run_files import LogRecord, read_run

if TYPE_CHECKING:
    from prm.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

FEW = 5  # with fewer comparisons a user's parameters may be barely personal
_ALIKE, _NAMED = 0.8, 3


def warn_about_users(scorer: "Scorer", users: Iterable[str | None]) -> None:
    """Log a line on unknown ids that are close to known ones, and one on users with few comparisons."""
    ids = [user for user in dict.fromkeys(users) if user]
    unknown = [user for user in ids if not scorer.knows(user)][:_NAMED]  # few, as each is compared with all users
    suggestions = {
        user: near
        for user in unknown
        if (near := _written_as_float(scorer, user) or closest(user, scorer.users, _ALIKE))
    }
    if suggestions:
        hints = ", ".join(f"{user!r} (did you mean {near!r}?)" for user, near in suggestions.items())
        logger.warning("warning: not in the model: %s", hints)
    counts = {user: scorer.judgements(user) for user in ids}
    few = [f"{user!r} ({n})" for user, n in counts.items() if n is not None and n < FEW]
    if few:
        more = f" and {counted(len(few) - _NAMED, 'more user')}" if len(few) > _NAMED else ""
        consequence = "their rewards may be barely personalised"
        logger.warning(
            "warning: trained on fewer than %d comparisons: %s%s; %s", FEW, ", ".join(few[:_NAMED]), more, consequence
        )


def _written_as_float(scorer: "Scorer", user: str) -> str | None:
    """The known id that differs from an unknown one by ".0" at its end."""
    return next((other for other in (user.removesuffix(".0"), f"{user}.0") if scorer.knows(other)), None)


def is_own_judge(run: str | Path, gold: str | Path, planned: Mapping[Path, Mapping[str, object]] | None = None) -> bool:
    """Whether a judge is the run itself, the reward it was trained on, or that of a run it started from.

    Such a judge would favour the run. A run's uniform model and copies of a run count as the run.

    Args:
        planned: settings of runs that do not exist yet, by folder.
    """
    judge, todo, seen = _folder_of(gold), [str(run)], set[Path]()
    while todo:
        folder = _folder_of(todo.pop())
        if folder in seen:
            continue
        seen.add(folder)
        if folder == judge or _is_copy(folder, judge):
            return True
        stored = read_run(folder).get("config", {}) if is_run(folder) else {}
        settings = (planned or {}).get(folder, stored)
        backbone = settings.get("backbone")
        name = backbone.get("name") if isinstance(backbone, Mapping) else None
        sources = [settings.get("reward"), settings.get("start_from"), name]
        todo += [source for source in sources if isinstance(source, str) and source]
    return False


def _is_copy(folder: Path, judge: Path) -> bool:
    if not (is_run(folder) and is_run(judge)):
        return False
    from prm.checkpoint.checkpoint import digest  # imports torch

    return digest(folder) == digest(judge)


def _folder_of(run: str | Path) -> Path:
    path = Path(run).expanduser().resolve()
    return path.parent if path.name == "uniform" else path


def warn_about_gold(run: str | Path, gold: str | Path) -> str:
    """Log a line if a judge was trained on the same data as a run, and return it; "" if it was not."""
    data, gold_data = (read_run(Path(folder)).get("data", LogRecord()) for folder in (run, gold))
    same = data.get("path") == gold_data.get("path") or data.get("fingerprint") == gold_data.get("fingerprint")
    if not (data.get("path") and same):
        return ""
    warning = f"warning: {run} and {gold} were trained on the same data: the judge shares the run's errors"
    logger.warning("%s", warning)
    return warning
