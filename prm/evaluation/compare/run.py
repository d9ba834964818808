"""Compare user models on one log (`prm compare`): every model on every part, kept as soon as it is done."""

import itertools
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm.checks import differing
from prm.config import RewardModelConfig, UserConfig
from prm.data.comparison import Comparison, extent, fingerprint
from prm.data.sources import Feedback
from prm.errors import PrmError
from prm.evaluation.compare.config import CompareModelsConfig
from prm.evaluation.compare.contenders import Choice, Task, contenders
from prm.evaluation.compare.parts import PartResult, part_file, read_part, run_part, write_part
from prm.evaluation.compare.problem import Fold, Problem, folds_to_hold_out, read_problem
from prm.features.hidden_states import Workers
from prm.io.disk import make_folder, remove
from prm.io.environment import environment
from prm.io.folders import NOTE, working_in
from prm.io.progress import without_bars
from prm.io.tables import write_json
from prm.training.heads.grid_search import side_by_side
from prm.training.prepare_log import refuse_ties, split_data
from prm.training.unreadable_rows import encoder_of_config, readable

logger = logging.getLogger(__name__)

Own = Mapping[str, Callable[[Task], Choice]]  # models that are compared beside ours, by name


@dataclass(frozen=True)
class Finished:
    """Every model on every part of the log."""

    problem: Problem
    folds: list[Fold]
    results: Mapping[str, list[PartResult]]


def compare_models(config: CompareModelsConfig, own: Own | None = None, workers: Workers | None = None) -> Finished:
    """Run every model on every part; what an earlier call with the same settings and data has finished is kept.

    Args:
        own: personal models that are compared beside those of `config.models`.
        workers: who reads the texts, if not this process.

    Raises `PrmError` for invalid settings or data, and for a folder with other settings or data unless `overwrite`.
    """
    config.check()
    folder = Path(config.output_dir)
    make_folder(folder)
    with working_in(folder):
        comparisons = _read(config)
        _begin(folder, config, comparisons)
        return run_models(config, read_problem(config, comparisons, workers), own)


def run_models(config: CompareModelsConfig, problem: Problem, own: Own | None = None) -> Finished:
    """Run every model on every part that `output_dir` has no result of, and keep the results there."""
    folder = Path(config.output_dir)
    folds = folds_to_hold_out(problem, config)
    if not folds:
        raise PrmError("no part can be held out: lower 'folds', give more data or another 'data.holdout_by'")
    logger.info("%s, in %d parts", extent(problem.comparisons), len(folds))
    make_folder(folder / "parts")
    models = {name: contenders()[name] for name in config.names} | dict(own or {})
    tasks = {fold.number: Task(problem, fold, config.train_config()) for fold in folds}

    def part(item: tuple[Fold, str]) -> PartResult:
        fold, name = item
        path = part_file(folder, fold, name)
        result = read_part(path, fold, config.after)
        if result is None:
            with without_bars():
                result = run_part(problem, fold, tasks[fold.number], models[name], config.after)
            write_part(path, result)
        return result

    todo = list(itertools.product(folds, models))
    found = side_by_side(part, todo, "comparing", "fit")
    results: dict[str, list[PartResult]] = {name: [] for name in models}
    for (_, name), result in zip(todo, found, strict=True):
        results[name].append(result)
    return Finished(problem, folds, results)


def _read(config: CompareModelsConfig) -> list[Comparison]:
    def read(feedback: Feedback) -> Feedback:
        encoder = encoder_of_config(config.backbone, UserConfig(), RewardModelConfig())
        return readable(feedback, encoder, config.data.on_bad_row == "skip", texts="unread")

    parts = split_data(config, read)
    refuse_ties(parts.train, config.data)
    return [*parts.train, *parts.test]


def _begin(folder: Path, config: CompareModelsConfig, comparisons: list[Comparison]) -> None:
    """Note settings and data. Raises `PrmError` if the folder holds parts of a comparison with others."""
    started: dict[str, Any] = {"config": config.to_dict(), "data": fingerprint(comparisons)}
    for key in ("overwrite", "models", "output_dir"):  # these do not change a part
        started["config"].pop(key)
    path = folder / NOTE
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    if earlier is not None and {**earlier, "environment": None} == {**started, "environment": None}:
        return
    if earlier is not None and not config.overwrite:
        keys = differing(earlier.get("config", {}), started["config"]) or ["the data"]
        raise PrmError(
            f"{folder} holds a comparison with other settings or data ({', '.join(keys)}): set another 'output_dir', "
            "or 'overwrite: true'"
        )
    if earlier is None and (folder / "parts").exists():
        raise PrmError(f"{folder / 'parts'} is of no comparison that {NOTE} tells of: set another 'output_dir'")
    remove(folder / "parts")
    write_json(path, started | {"environment": environment()})
