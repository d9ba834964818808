"""What training measured on comparisons that it held out, as `metrics.json` has it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, NotRequired, TypedDict, cast

from prm.io.run_files import LogRecord, read_json, read_run


class HeldOut(NamedTuple):
    """Accuracy, in [0, 1], and log loss, in nats, on held-out comparisons; `None` for what was not measured."""

    accuracy: float | None
    nll: float

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f"accuracy {100 * self.accuracy:.1f}%, "
        return f"{accuracy}log loss {self.nll:.3f} nats"


class _Best(TypedDict):
    validation_nll: float
    validation_accuracy: NotRequired[object]  # NaN if no held-out comparison is decided


class _Search(TypedDict):
    best: _Best


class _Metrics(TypedDict, total=False):
    personal: _Search
    uniform: _Search
    best_step: int | None
    history: list[dict[str, object]]


class TrainingResults(NamedTuple):
    """Results of the trained model, `personal`, and of the tuned uniform one, `uniform`, where the run has one.

    `measured_on`: the folds of a search, the validation part that chose the checkpoint, or a part that chose nothing.
    """

    by_model: Mapping[str, HeldOut]
    measured_on: Literal["folds", "validation", "held out"]


def read_results(run: Path) -> TrainingResults:
    """What training measured; `by_model` is empty if it measured nothing.

    Cross-validated results are of folds that had no part in the choice of settings; those of a validation part are of
    the checkpoint that it chose, those of another part are the last. A run that continues another on a frozen backbone
    has those of the first run.

    Raises `CheckpointError` if `metrics.json` is missing or damaged.
    """
    metrics = read_json(run / "metrics.json", _Metrics)
    found = {name: metrics[name]["best"] for name in ("personal", "uniform") if name in metrics}
    if found:
        results = [held_out(best.get("validation_accuracy"), best["validation_nll"]) for best in found.values()]
        return TrainingResults(dict(zip(found, results, strict=True)), "folds")
    entries = [entry for entry in metrics.get("history", ()) if isinstance(entry.get("eval_nll"), float)]
    chose = bool(read_run(run).get("data", LogRecord()).get("validation_comparisons"))
    if not entries:
        return TrainingResults({}, "held out")
    best = metrics.get("best_step") if chose else None
    entry = next((entry for entry in entries if entry.get("step") == best), entries[-1])
    result = held_out(entry.get("eval_accuracy"), cast(float, entry["eval_nll"]))
    return TrainingResults({"personal": result}, "validation" if chose else "held out")


def held_out(accuracy: object, nll: float) -> HeldOut:
    """The results; an accuracy that is not finite, of ties alone, was not measured."""
    return HeldOut(accuracy if isinstance(accuracy, float) and math.isfinite(accuracy) else None, nll)
