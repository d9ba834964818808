"""Warnings before scoring: ids that look mistyped, users with few comparisons, and judges that are not independent."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prm.errors import closest, counted
from prm.io.folders import is_run
from prm.io.run_files import LogRecord, read_run
from prm.models.backbone_paths import seen_from

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
    judge = _folder_of(gold, planned)
    return any(folder == judge or _is_copy(folder, judge) for folder, _ in _made_from(run, planned))


def _made_from(
    run: str | Path, planned: Mapping[Path, Mapping[str, object]] | None
) -> Iterator[tuple[Path, Mapping[str, object]]]:
    """(folder, settings) of the run, of its reward, of the run that it continues, of its backbone, and so on.

    Settings are empty for what is no run: a language model or an encoder.
    """
    todo, seen = [str(run)], set[Path]()
    while todo:
        folder = _folder_of(todo.pop(), planned)
        if folder in seen:
            continue
        seen.add(folder)
        stored = read_run(folder).get("config", {}) if is_run(folder) else {}
        settings = (planned or {}).get(folder, stored)
        yield folder, settings
        sources = [settings.get("reward"), settings.get("start_from"), _backbone_in(settings)]
        todo += [source for source in sources if isinstance(source, str) and source]


def _backbone_in(settings: Mapping[str, object]) -> object:
    backbone = settings.get("backbone")
    return backbone.get("name") if isinstance(backbone, Mapping) else None


def backbones_below(run: str | Path, planned: Mapping[Path, Mapping[str, object]] | None = None) -> dict[str, str]:
    """The language models and encoders that a run, its reward and its backbone started from.

    Names by what they are known by: their folder or hub id, and the fingerprints of the weights that the runs read, so
    that a copy in another folder is found out, unless other training lies between.

    Args:
        planned: as of `is_own_judge`.
    """
    from prm.checkpoint.config_file import read_config

    made_from = list(_made_from(run, planned))
    runs, found = {folder for folder, settings in made_from if settings}, dict[str, str]()
    for folder, settings in made_from:
        name = _backbone_in(settings)
        if not isinstance(name, str):
            continue
        place = seen_from(folder, name) if is_run(folder) else name
        made_by = _folder_of(place, planned)
        if made_by not in runs:
            found[str(made_by) if Path(place).expanduser().is_dir() else place] = name
        if is_run(folder):
            found[read_config(folder).fingerprints["backbone"]] = name
    return found


def shared_backbone(
    run: str | Path, gold: str | Path, planned: Mapping[Path, Mapping[str, object]] | None = None
) -> str:
    """The name of a language model or encoder that a run and its judge both started from; "" if there is none."""
    judge = backbones_below(gold, planned)
    return next((name for mark, name in backbones_below(run, planned).items() if mark in judge), "")


def _is_copy(folder: Path, judge: Path) -> bool:
    if not (is_run(folder) and is_run(judge)):
        return False
    from prm.checkpoint.checkpoint import digest  # imports torch

    return digest(folder) == digest(judge)


def _folder_of(run: str | Path, planned: Mapping[Path, Mapping[str, object]] | None) -> Path:
    """The run's own folder, also of its uniform model and of the backbone that it saved."""
    path = Path(run).expanduser().resolve()
    saved = path.name == "backbone" and (is_run(path.parent) or path.parent in (planned or {}))
    return path.parent if path.name == "uniform" or saved else path


def warn_about_gold(run: str | Path, gold: str | Path) -> str:
    """Log a line if a judge was trained on the same data as a run or reads the same backbone; return it, or ""."""
    data, gold_data = (read_run(Path(folder)).get("data", LogRecord()) for folder in (run, gold))
    alike = data.get("path") == gold_data.get("path") or data.get("fingerprint") == gold_data.get("fingerprint")
    same_data, name = bool(data.get("path")) and alike, shared_backbone(run, gold)
    if same_data and name:
        fault = f"were trained on the same data and read {name}: the judge shares the run's errors"
    elif same_data:
        fault = "were trained on the same data, though on different backbones: the judge may share the run's errors"
    elif name:
        fault = f"read {name}: the judge overlooks what the run overlooks"
    else:
        return ""
    warning = f"warning: {run} and {gold} {fault}"
    logger.warning("%s", warning)
    return warning
