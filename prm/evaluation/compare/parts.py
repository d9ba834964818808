"""One model on one part of the log: held-out margins, those after the flip test, and those of new users."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prm.evaluation.compare.contenders import Choice, Fitted, Task
from prm.evaluation.compare.problem import Fold, Problem, positions_within_users
from prm.io.tensors import write_tensors
from prm.training.heads.settings_choice import losses_by_fold

_MARGINS = ("margin", "reversed", "reversed_generic")  # [m] each


@dataclass(frozen=True)
class Record:
    """What is known of a fit besides its margins.

    Args:
        settings: those chosen, JSON-ready.
        validation_nll: log loss of the choice by cross-validation on the training comparisons, nats.
        validation_nll_by_fold: that of each inner fold.
        tried: number of settings tried.
        choosing, fitting: seconds.
    """

    settings: dict[str, Any]
    validation_nll: float
    validation_nll_by_fold: list[float]
    tried: int
    choosing: float
    fitting: float


@dataclass(frozen=True)
class PartResult:
    """Logits of the chosen over the rejected response, for the m held-out comparisons.

    Args:
        margin: float32 [m].
        reversed: after training with the labels of half of the users reversed, [m].
        reversed_generic: the same, for a user without comparisons, [m].
        new: for users who were not trained on but fitted to their first k comparisons, [len(after), m]; NaN for users
            who are not new in this part or have fewer than k comparisons.
    """

    margin: Tensor
    reversed: Tensor
    reversed_generic: Tensor
    new: Tensor
    record: Record


def run_part(
    problem: Problem, fold: Fold, task: Task, choose: Callable[[Task], Choice], after: Sequence[int]
) -> PartResult:
    """Choose the settings of a model on a part's training comparisons, fit it, and score the held-out ones.

    The settings of the flip test and of new users are those chosen here.
    """
    started = time.perf_counter()
    choice = choose(task)
    chosen = time.perf_counter()
    fitted = choice.fit(task.data)
    test = problem.of(fold.test)
    margin = fitted.margins(test)
    seconds = time.perf_counter() - chosen
    flipped = choice.fit(problem.reversed(task.data))
    unknown = replace(test, rows=torch.zeros_like(test.rows))
    by_fold = losses_by_fold(choice.margin, task.data, (~choice.margin.isnan()).nonzero()[:, 0])
    record = Record(
        choice.to_dict(), choice.validation_nll, by_fold, choice.tried, round(chosen - started, 3), round(seconds, 3)
    )
    new = _new_users(problem, fold, choice, after)
    return PartResult(margin, flipped.margins(test), flipped.margins(unknown), new, record)


def _new_users(problem: Problem, fold: Fold, choice: Choice, after: Sequence[int]) -> Tensor:
    out = torch.full((len(after), len(fold.test)), float("nan"))
    if not len(fold.new_rows) or not after:
        return out
    rows = problem.data.rows
    is_new = torch.isin(rows[fold.train], fold.new_rows)
    theirs = fold.train[is_new]
    if is_new.all():  # nobody is left to learn from
        return out
    fitted = choice.fit(problem.of(fold.train[~is_new]))
    position = positions_within_users(rows[theirs], problem.order[theirs])
    counts = torch.bincount(rows[theirs], minlength=problem.n_rows)
    for i, k in enumerate(after):
        enough = (torch.isin(rows[fold.test], fold.new_rows) & (counts[rows[fold.test]] >= k)).nonzero()[:, 0]
        if not len(enough):
            continue
        first = theirs[(position < k) & (counts[rows[theirs]] >= k)]
        model: Fitted = fitted.with_new_users(problem.of(first)) if k else fitted
        out[i, enough] = model.margins(problem.of(fold.test[enough]))
    return out


def part_file(folder: Path, fold: Fold, name: str) -> Path:
    """Where a part's result is kept."""
    return folder / "parts" / f"{fold.number}-{name}.safetensors"


def write_part(path: Path, result: PartResult) -> None:
    """Keep a result, atomically."""
    tensors = {name: getattr(result, name) for name in (*_MARGINS, "new")}
    write_tensors(path, tensors, {"record": json.dumps(asdict(result.record))})


def read_part(path: Path, fold: Fold, after: Sequence[int]) -> PartResult | None:
    """The result that was kept; `None` if there is none, or it is damaged, of another part or version."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in (*_MARGINS, "new")}
            record = Record(**json.loads((file.metadata() or {})["record"]))
    except (SafetensorError, KeyError, ValueError, TypeError, OSError):
        return None
    m = len(fold.test)
    fits = tensors["new"].shape == (len(after), m) and all(tensors[name].shape == (m,) for name in _MARGINS)
    return PartResult(**tensors, record=record) if fits else None
