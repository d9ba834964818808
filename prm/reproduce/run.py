"""Train and evaluate the rows of an experiment, one after the other, and keep what is done."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prm.backbones import processes
from prm.checkpoint import read_run
from prm.config import FeedbackConfig, TrainConfig
from prm.errors import PrmError
from prm.evaluate import PERSONAL, Drawn, Evaluation, evaluate_run
from prm.files import write_json
from prm.reproduce.rows import Experiment, Group, Look, Result, Row
from prm.run import train
from prm.sources import read_feedback

logger = logging.getLogger(__name__)

Configure = Callable[[Row], TrainConfig]


def run_rows(experiment: Experiment, configure: Configure, drawn: Drawn) -> Iterator[dict[str, Result]]:
    """Results so far by row, after each row. The first row's uniform model is everybody's opponent.

    A row that was run before, with the same settings, is read from its folder; one that was killed is taken up.
    Experiments that share a row share its folder.

    Args:
        configure: a row's settings; their `output_dir` is the row's folder.
        drawn: what intervals are drawn over.

    Raises `PrmError` where a row's folder holds a run with other settings.
    """
    results: dict[str, Result] = {}
    opponent = Path(configure(experiment.rows[0]).output_dir) / "uniform"
    for number, row in enumerate(experiment.rows, start=1):
        config = configure(row)
        logger.info("%s, row %d of %d: %s", experiment.name, number, len(experiment.rows), row.label)
        found = _stored(config)
        if found is None:
            started = time.perf_counter()
            run = Path(config.output_dir)
            if not run.is_dir():
                train(config)
            if not processes().is_main_process:
                continue
            evaluation = _evaluate(run, experiment, opponent if opponent.is_dir() else None, drawn)
            found = _result(run, evaluation, time.perf_counter() - started)
            write_json(run / "result.json", {"settings": config.to_dict(), "result": found.to_dict()})
        results[row.name] = found
        yield dict(results)


def _stored(config: TrainConfig) -> Result | None:
    """The result in the row's folder, if any. Raises `PrmError` where the folder was made with other settings."""
    run = Path(config.output_dir)
    if not run.is_dir():
        return None
    made = read_run(run)["config"]
    asked = json.loads(json.dumps(config.to_dict()))
    if differing := [key for key in asked if asked[key] != made.get(key)]:
        raise PrmError(f"{run} was made with other settings ({', '.join(differing)}): delete it or name another folder")
    path = run / "result.json"
    if not path.is_file():
        return None
    return Result.from_dict(json.loads(path.read_text(encoding="utf-8"))["result"])


def _evaluate(run: Path, experiment: Experiment, opponent: Path | None, drawn: Drawn) -> Evaluation:
    test = run / "test.jsonl"
    if not test.is_file():
        raise PrmError(f"{run} holds nothing out: give its config a data.test_fraction or data.split 'given'")
    comparisons = read_feedback(FeedbackConfig(path=str(test))).comparisons
    return evaluate_run(run, comparisons, opponent, drawn=drawn, groups=experiment.groups)


def _result(run: Path, evaluation: Evaluation, seconds: float) -> Result:
    personal = evaluation.row(PERSONAL)
    assert personal.top is not None
    assert personal.nll is not None
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    parameters = read_run(run)["parameters"]
    return Result(
        top=personal.top,
        generic=personal.generic,
        groups={g.value: _group(g) for g in evaluation.groups.groups} if evaluation.groups is not None else {},
        nll=personal.nll,
        controls={row.name: row.top for row in evaluation.rows if row.name != PERSONAL and row.top is not None},
        gain=evaluation.gain,
        user_parameters=parameters["users"],
        shared_parameters=parameters["shared"],
        steps=metrics.get("steps", 0),
        seconds=seconds,
        looks=tuple(_look(entry) for entry in metrics.get("history", [])),
    )


def _group(group: Any) -> Group:
    average = {row.name: row for row in group.rows}
    personal = average.pop(PERSONAL)
    return Group(group.people, personal.accuracy, personal.error, {name: row.accuracy for name, row in average.items()})


def _look(entry: Mapping[str, Any]) -> Look:
    accuracy = entry["eval_accuracy"]
    return Look(entry["step"], accuracy, entry.get("eval_generic_accuracy", accuracy), entry["eval_nll"])
