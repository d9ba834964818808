"""The rows of an evaluation's table, one per predictor of the labels. Numbers in, numbers out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prm.metrics import Array, Calibration, Estimate, average, brier, calibration, correct, estimate, nll, worst_tenth

PERSONAL, GENERIC, UNIFORM, SHUFFLED = "personal", "generic user", "uniform, tuned", "users shuffled"
LONGEST, LENGTH_SIGN = "longest answer", "length sign per user"
SAVED = "nats saved"
SAVED_OVER = {UNIFORM: SAVED, GENERIC: f"{SAVED}, {GENERIC}"}  # keys in `per_user`


@dataclass(frozen=True)
class Labels:
    """Labels of comparisons, arrays [n].

    Args:
        p: probability that the chosen response is preferred.
        users: the user who compared.
        units: what the bootstrap draws.
        known: whether the model was trained on the user.
    """

    p: Array
    users: NDArray[np.str_]
    units: NDArray[np.str_]
    known: NDArray[np.bool_]

    def take(self, index: Sequence[int] | NDArray[np.bool_]) -> "Labels":
        """Those at `index`."""
        return Labels(self.p[index], self.users[index], self.units[index], self.known[index])


@dataclass(frozen=True)
class MetricsRow:
    """Metrics of one predictor. Rules that give no probability have no `nll`, `brier` and `calibration`.

    Args:
        accuracy: on all comparisons, without ties (here and below).
        top: Accuracy-top of the paper (section C.3): on comparisons of known users; `None` without any.
        generic: Accuracy-generic: on comparisons of unknown users; `None` without any.
        macro_accuracy, macro_error: mean of the users' accuracies, and its standard error.
        worst_tenth: mean accuracy of the tenth of users with the lowest accuracy in this row.
    """

    name: str
    accuracy: Estimate
    top: Estimate | None
    generic: Estimate | None
    macro_accuracy: float
    macro_error: float
    worst_tenth: float
    nll: Estimate | None
    brier: Estimate | None
    calibration: Calibration | None


def gains(models: Mapping[str, Array], labels: Labels) -> tuple[Estimate, Estimate] | tuple[None, None]:
    """Gains of the personal margins [n] over the uniform model's, if there is one: (accuracy, decrease in log loss)."""
    if UNIFORM not in models:
        return None, None
    ours, theirs = (models[name] for name in (PERSONAL, UNIFORM))
    accuracy, nats = correct(ours, labels.p) - correct(theirs, labels.p), nll(theirs, labels.p) - nll(ours, labels.p)
    return estimate(accuracy, labels.units), estimate(nats, labels.units)


def make_rows(models: Mapping[str, Array], rules: Mapping[str, Array], labels: Labels) -> list[MetricsRow]:
    """A row for each model, then for each rule, from their margins [n]; a user's taste for length is the last."""
    margins = {**models, **rules}
    return [_row(name, margins[name], labels, name in models) for name in sorted(margins, key=LENGTH_SIGN.__eq__)]


def _row(name: str, margin: Array, labels: Labels, likelihood: bool) -> MetricsRow:
    right, known = correct(margin, labels.p), labels.known
    everyone = estimate(right, labels.units)
    macro = average(right, labels.users)
    return MetricsRow(
        name=name,
        accuracy=everyone,
        top=everyone if known.all() else _part(right, labels, known),
        generic=everyone if not known.any() else _part(right, labels, ~known),
        macro_accuracy=macro.value,
        macro_error=macro.error,
        worst_tenth=worst_tenth(right, labels.users),
        nll=estimate(nll(margin, labels.p), labels.units) if likelihood else None,
        brier=estimate(brier(margin, labels.p), labels.units) if likelihood else None,
        calibration=calibration(margin, labels.p) if likelihood else None,
    )


def _part(right: Array, labels: Labels, part: NDArray[np.bool_]) -> Estimate | None:
    return estimate(right[part], labels.units[part]) if part.any() else None
