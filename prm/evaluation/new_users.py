"""The curve of new users for a page: what `prm cold_start` found, or computed if that is cheap."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from prm.checkpoint.config_file import read_config
from prm.checks import Natural
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.rows import PERSONAL, UNIFORM
from prm.io.json_estimates import Ends, estimate_of
from prm.io.run_files import read_json, result_file
from prm.metrics import FEW_PEOPLE, Estimate

logger = logging.getLogger(__name__)

AFTER = (0, 1, 2, 5, 10, 20, 50)  # numbers of training comparisons of a new user


class _Row(TypedDict):
    name: str
    accuracy: Ends


class _Step(TypedDict):
    after: Natural
    rows: list[_Row]
    gain: Ends | None
    gain_nll: Ends | None


class StoredColdStart(TypedDict):
    """What the curve needs of a `ColdStart` as JSON; `data` is the log, in files."""

    steps: list[_Step]
    people: Natural
    comparisons: Natural
    by: str
    pays_from: Natural | None
    data: NotRequired[str]


@dataclass(frozen=True)
class Step:
    """New users after training on `after` comparisons of each; gains over the tuned uniform model, if there is one."""

    after: int
    accuracy: Estimate
    uniform: Estimate | None
    gain: Estimate | None
    gain_nll: Estimate | None


@dataclass(frozen=True)
class NewUsers:
    """A cold start as a curve: `people` users of the log `data`, on `comparisons` held out by `by`.

    `pays_from` is the number of training comparisons from which every step is clearly better than every baseline.
    """

    data: str
    people: int
    comparisons: int
    by: str
    pays_from: int | None
    steps: tuple[Step, ...]


def curve_of(stored: StoredColdStart, data: str) -> NewUsers:
    """The curve of a `ColdStart` as JSON."""
    numbers = stored["people"], stored["comparisons"], stored["by"], stored["pays_from"]
    return NewUsers(data, *numbers, tuple(map(_step, stored["steps"])))


def _step(stored: _Step) -> Step:
    accuracy = {row["name"]: estimate_of(row["accuracy"]) for row in stored["rows"]}
    gain, gain_nll = (None if ends is None else estimate_of(ends) for ends in (stored["gain"], stored["gain_nll"]))
    return Step(stored["after"], accuracy[PERSONAL], accuracy.get(UNIFORM), gain, gain_nll)


def new_users_of_run(
    run: Path, log: Path, fresh: Sequence[Comparison], against: str | None = None, backbone: str | None = None
) -> NewUsers | None:
    """What `prm cold_start` wrote to the run folder, on this log or else the latest; or what it would find on this log.

    It is computed for linear heads alone, which take seconds, and if five users or more have comparisons to train on
    and to hold out. `None` if there is nothing to show.

    Args:
        fresh: the log's comparisons of users that the run does not know.

    Raises `CheckpointError` naming a damaged file.
    """
    exact = result_file(run, "cold_start", log.stem)
    if files := list(run.glob("cold_start-*.json")):
        path = exact if exact in files else max(files, key=lambda path: path.stat().st_mtime)
        stored: StoredColdStart = read_json(path, StoredColdStart, "delete it, or run 'prm cold_start' again")
        return curve_of(stored, stored.get("data", path.stem))
    settings = read_config(run).settings
    if settings.reward is None or settings.reward.form != "linear_head" or settings.users.kind == "uniform":
        return None
    after = affordable(list(Counter(c.user_id for c in fresh if not c.is_tie).values()))
    if not after:
        return None
    from prm.evaluation.cold_start import cold_start_run  # imports torch

    try:
        found = cold_start_run(run, fresh, after, against=against, backbone=backbone)
    except PrmError as error:  # such as comparisons of one prompt alone, which cannot be split
        logger.info("no curve of new users: %s", error)
        return None
    return curve_of(cast(StoredColdStart, found.to_dict()), str(log))


def affordable(counts: Sequence[int]) -> list[int]:
    """Those of `AFTER` for which half of the comparisons suffice, for five users and half of the new ones or more.

    Args:
        counts: comparisons of each new user, of which half are held out.
    """
    halves = sorted((count // 2 for count in counts if count > 1), reverse=True)
    needed = max(FEW_PEOPLE, -(-len(halves) // 2))
    most = halves[needed - 1] if len(halves) >= needed else 0
    return [k for k in AFTER if k <= most] if most else []
