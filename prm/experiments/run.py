"""Train and evaluate the rows of an experiment one after the other, and keep the results."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NotRequired, TypedDict

from prm.checkpoint.checkpoint import read_users
from prm.checks import Natural, differing
from prm.config import FeedbackConfig, TrainConfig
from prm.data.sources import read_feedback
from prm.errors import PrmError
from prm.evaluation.evaluate import PERSONAL, Drawn, evaluate_run
from prm.evaluation.groups import Group
from prm.experiments.experiment_parts import (
    EvaluationPoint,
    Experiment,
    ExperimentRow,
    GroupResult,
    Result,
    StoredResult,
)
from prm.io.folders import working_in
from prm.io.run_files import read_json, read_run
from prm.io.tables import write_json
from prm.models.backbones import processes
from prm.training.run import train

logger = logging.getLogger(__name__)

Configure = Callable[[ExperimentRow], TrainConfig]


class _StoredRow(TypedDict):
    result: StoredResult


class _Evaluation(TypedDict):
    step: Natural
    eval_accuracy: float
    eval_nll: float
    eval_generic_accuracy: NotRequired[float]
    eval_generic_nll: NotRequired[float]


class _Metrics(TypedDict, total=False):
    steps: Natural
    history: list[_Evaluation]


def run_rows(experiment: Experiment, configure: Configure, drawn: Drawn) -> Iterator[dict[str, Result]]:
    """Yield the results so far by row, after each row. Every row is compared with the first row's uniform model.

    A row that was run before with the same settings is read from its folder; one that was killed is resumed.
    Experiments that share a row share its folder.

    Args:
        configure: gives a row's settings; their `output_dir` is the row's folder.
        drawn: what intervals are drawn over.

    Raises `PrmError` if a row's folder holds a run with other settings.
    """
    results: dict[str, Result] = {}
    uniform = Path(configure(experiment.rows[0]).output_dir) / "uniform"
    for number, row in enumerate(experiment.rows, start=1):
        config = configure(row)
        logger.info("%s, row %d of %d: %s", experiment.name, number, len(experiment.rows), row.label)
        result = _stored(config)
        if result is None:
            started = time.perf_counter()
            run = Path(config.output_dir)
            if not run.is_dir():
                train(config)
            if not processes().is_main_process:
                continue
            against = uniform if uniform.is_dir() else None
            with working_in(run):
                result = _evaluated(run, experiment.groups, against, drawn)
                result = replace(result, seconds=time.perf_counter() - started)
                write_json(run / "result.json", {"settings": config.to_dict(), "result": result.to_dict()})
        results[row.name] = result
        yield dict(results)


def _stored(config: TrainConfig) -> Result | None:
    """The result in the row's folder, if any. Raises `PrmError` if the folder was made with other settings."""
    run = Path(config.output_dir)
    if not run.is_dir():
        return None
    stored = read_run(run, "config")["config"]
    if keys := differing(stored, config.to_dict(), defaults=TrainConfig().to_dict()):
        raise PrmError(f"{run} was made with other settings ({', '.join(keys)}): delete it or name another folder")
    path = run / "result.json"
    if not path.exists():
        return None
    return Result.from_dict(read_json(path, _StoredRow, "delete it, and the row is evaluated again")["result"])


def _evaluated(run: Path, groups: str | None, against: Path | None, drawn: Drawn) -> Result:
    """Evaluate the run on its held-out part: the users it was trained on and, separately, unknown users."""
    test = run / "test.jsonl"
    if not test.is_file():
        raise PrmError(f"{run} holds nothing out: set data.test_fraction, or data.holdout_by 'given', in its config")
    comparisons = read_feedback(FeedbackConfig(path=str(test))).comparisons
    known = read_users(run)
    of_known, of_unknown = ([c for c in comparisons if (c.user_id in known) is seen] for seen in (True, False))
    if not of_known:
        raise PrmError(f"{run} holds out nothing of the users it was trained on: choose another data.holdout_by")
    evaluation = evaluate_run(run, of_known, against, drawn=drawn, groups=groups)
    generic = evaluate_run(run, of_unknown, against, drawn=drawn).row(PERSONAL).accuracy if of_unknown else None
    metrics = read_json(run / "metrics.json", _Metrics)
    personal, parameters = evaluation.row(PERSONAL), read_run(run, "parameters.users")["parameters"]
    assert personal.nll is not None
    assert parameters is not None
    return Result(
        top=personal.accuracy,
        generic=generic,
        groups={g.value: _group(g) for g in evaluation.groups.groups} if evaluation.groups is not None else {},
        nll=personal.nll,
        controls={row.name: row.accuracy for row in evaluation.rows if row.name != PERSONAL},
        gain=evaluation.gain,
        user_parameters=parameters["users"],
        shared_parameters=parameters["shared"],
        steps=metrics.get("steps", 0),
        seconds=0.0,
        looks=tuple(_look(entry) for entry in metrics.get("history", [])),
    )


def _group(group: Group) -> GroupResult:
    average = {row.name: row for row in group.rows}
    personal = average.pop(PERSONAL)
    return GroupResult(
        group.people, personal.accuracy, personal.error, {name: row.accuracy for name, row in average.items()}
    )


def _look(entry: _Evaluation) -> EvaluationPoint:
    accuracy = entry["eval_accuracy"]
    generic, nll = entry.get("eval_generic_accuracy", accuracy), entry["eval_nll"]
    return EvaluationPoint(entry["step"], accuracy, generic, nll, entry.get("eval_generic_nll", nll))
