"""The figures of a comparison: every model on all held-out comparisons, against the best baseline. Intervals by people.

Baseline and winner are chosen in each part by cross-validation on its training comparisons, so that no held-out label
decides what is reported. The model with a kernel is the best baseline only where it wins in every fold
(`prm.training.heads.fold_rule`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from prm.data.comparison import Extent, extent
from prm.evaluation.compare.config import BASELINES, KERNEL, STACK
from prm.io.tables import plain
from prm.metrics import Array, Calibration, Estimate, calibration, correct, estimate, macro, nll, worst_tenth
from prm.training.heads.fold_rule import lowest

if TYPE_CHECKING:  # reports read comparisons, and need no torch
    from prm.evaluation.compare.parts import PartResult, Record
    from prm.evaluation.compare.run import Finished

N = TypeVar("N", bound=str)

BEST_BASELINE, BEST_PERSONAL = "best baseline", "best personal model"
_BANDS = (1, 5, 10, 20, 50, 100, 200)  # minimum number of training comparisons of each group of users
MANY_PEOPLE = 30  # in a smaller group nothing can be shown


@dataclass(frozen=True)
class Gains:
    """A model less the best baseline: accuracy, and how much lower the log loss is (nats), per comparison and user."""

    points: Estimate
    points_macro: Estimate
    nats: Estimate
    nats_macro: Estimate


@dataclass(frozen=True)
class ModelRow:
    """One model on all held-out comparisons.

    Args:
        accuracy, macro_accuracy: mean over comparisons and over users, without ties.
        nll, macro_nll: log loss in nats, ties included.
        worst_tenth: mean accuracy of the tenth of users with the lowest.
        gains: over the best baseline; `None` for the best baseline itself.
        follows: flip test, trained with the labels of half of the users reversed: share of comparisons that the model
            predicts as the user's training labels have it, less the share that it would for a user without comparisons.
            Exactly 0 for a model that knows nobody.
        validation_nll: mean over parts of the log loss by cross-validation.
        validation_nll_by_fold: that of each fold, part by part.
        tried: number of settings tried in each part.
        seconds: to choose and fit, per part.
        settings: chosen in each part.
    """

    name: str
    personal: bool
    accuracy: Estimate
    macro_accuracy: Estimate
    nll: Estimate
    macro_nll: Estimate
    calibration: Calibration
    worst_tenth: float
    gains: Gains | None
    follows: Estimate | None
    validation_nll: float
    validation_nll_by_fold: list[float]
    tried: int
    seconds: float
    settings: list[dict[str, Any]]


@dataclass(frozen=True)
class CountGroup:
    """Users with from `least` to `most` training comparisons (`None`: and more); gains by model."""

    least: int
    most: int | None
    people: int
    comparisons: int
    gains: dict[str, Gains]


@dataclass(frozen=True)
class NewUsers:
    """Users who were not trained on, after `after` comparisons of each; accuracy, log loss and gains by model."""

    after: int
    people: int
    comparisons: int
    accuracy: dict[str, Estimate]
    nll: dict[str, Estimate]
    gains: dict[str, Gains]


@dataclass(frozen=True)
class Comparisons:
    """The complete result.

    Args:
        size: of the log.
        held_out: comparisons that were held out, ties among them.
        decided: those without ties.
        people: users of held-out comparisons.
        parts: number of parts.
        baselines, winners: how often each model was the best baseline, and the best personal model, in a part.
    """

    size: Extent
    held_out: int
    decided: int
    people: int
    parts: int
    baselines: dict[str, int]
    winners: dict[str, int]
    rows: list[ModelRow]
    groups: list[CountGroup]
    new_users: list[NewUsers]

    def row(self, name: str) -> ModelRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values: dict[str, Any] = plain(asdict(self))
        return values | {"size": self.size._asdict()}


@dataclass(frozen=True)
class _Held:
    """All held-out comparisons, in the order of parts; arrays [n].

    Args:
        count: training comparisons of the comparison's user.
        reversed: whether the user's labels were reversed in the flip test.
        part: position of the part.
    """

    p: Array
    users: NDArray[np.int64]
    count: NDArray[np.int64]
    reversed: NDArray[np.bool_]
    part: NDArray[np.int64]


def summarise(finished: "Finished", after: Sequence[int]) -> Comparisons:
    """Pool the parts."""
    held, results = _held_out(finished), finished.results
    chosen: dict[str, list[PartResult]] = dict(results)
    baselines = _best_by_part(results, [name for name in results if name in BASELINES])
    winners = _best_by_part(results, [name for name in results if name not in BASELINES])
    chosen[BEST_BASELINE] = [results[name][k] for k, name in enumerate(baselines)]
    if winners:
        chosen[BEST_PERSONAL] = [results[name][k] for k, name in enumerate(winners)]
    margins = {name: _joined([part.margin for part in parts]) for name, parts in chosen.items()}
    base = margins[BEST_BASELINE]
    personal = [name for name in chosen if name not in (*BASELINES, BEST_BASELINE)]
    return Comparisons(
        extent(finished.problem.comparisons),
        len(held.p),
        int((held.p != 0.5).sum()),
        len(set(held.users.tolist())),
        len(finished.folds),
        dict(Counter(baselines)),
        dict(Counter(winners)),
        [_row(name, parts, margins[name], base, held, name in personal) for name, parts in chosen.items()],
        _groups({name: margins[name] for name in personal}, base, held),
        _new_users(chosen, held, after),
    )


def _best_by_part(results: Mapping[str, Sequence["PartResult"]], names: Sequence[str]) -> list[str]:
    """In each part, the model that does best by cross-validation on the training comparisons."""
    n = len(next(iter(results.values()))) if names else 0
    return [best_validated({name: results[name][k].record for name in names}) for k in range(n)]


def best_validated(found: Mapping[N, "Record | ModelRow"]) -> N:
    """The name with the lowest log loss by cross-validation.

    A uniform model with a kernel must beat the best one without in every fold, and a personal model must so beat the
    stack, which adds to the uniform model what users' own parts are surely worth.
    """
    names = list(found)
    losses = [one.validation_nll for one in found.values()]
    must_win = [name != STACK for name in names] if STACK in names else [name == KERNEL for name in names]
    return names[lowest(losses, must_win, lambda i: found[names[i]].validation_nll_by_fold)]


def _held_out(finished: "Finished") -> _Held:
    problem = finished.problem
    tests = [fold.test for fold in finished.folds]
    index = np.concatenate([test.numpy() for test in tests])
    rows = problem.data.rows.numpy()
    counts = [np.bincount(rows[fold.train.numpy()], minlength=problem.n_rows) for fold in finished.folds]
    count = np.concatenate([c[rows[t.numpy()]] for c, t in zip(counts, tests, strict=True)])
    part = np.concatenate([np.full(len(t), k) for k, t in enumerate(tests)])
    p = problem.data.p_chosen.numpy()[index].astype(np.float64)
    return _Held(p, rows[index], count, problem.reversed_rows.numpy()[rows[index]], part)


def _joined(parts: Sequence[Any]) -> Array:
    return np.concatenate([part.numpy() for part in parts]).astype(np.float64)


def _gains(margin: Array, base: Array, held: _Held, index: NDArray[np.bool_]) -> Gains:
    p, users = held.p[index], held.users[index]
    points = correct(margin[index], p) - correct(base[index], p)
    nats = nll(base[index], p) - nll(margin[index], p)
    return Gains(estimate(points, users), macro(points, users), estimate(nats, users), macro(nats, users))


def _row(name: str, parts: Sequence["PartResult"], margin: Array, base: Array, held: _Held, personal: bool) -> ModelRow:
    right, loss = correct(margin, held.p), nll(margin, held.p)
    records = [part.record for part in parts]
    everything = np.ones(len(margin), np.bool_)
    return ModelRow(
        name,
        personal,
        estimate(right, held.users),
        macro(right, held.users),
        estimate(loss, held.users),
        macro(loss, held.users),
        calibration(margin, held.p),
        worst_tenth(right, held.users),
        None if name == BEST_BASELINE else _gains(margin, base, held, everything),
        _follows(_joined([p.reversed for p in parts]), _joined([p.reversed_generic for p in parts]), held),
        float(np.mean([r.validation_nll for r in records])),
        [loss for r in records for loss in r.validation_nll_by_fold],
        max(r.tried for r in records),
        float(np.mean([r.choosing + r.fitting for r in records])),
        [r.settings for r in records],
    )


def _follows(margin: Array, generic: Array, held: _Held) -> Estimate | None:
    """Both halves count: reversed labels cancel what people agree on, and leave the larger half's view of it.

    The generic user gets that view, and whatever else in the texts tells the halves apart.
    """
    known = held.count > 0
    if not (known & held.reversed & (held.p != 0.5)).any():
        return None
    sign, p, users = np.where(held.reversed, -1.0, 1.0)[known], held.p[known], held.users[known]
    return estimate(correct(sign * margin[known], p) - correct(sign * generic[known], p), users)


def _groups(margins: Mapping[str, Array], base: Array, held: _Held) -> list[CountGroup]:
    found = []
    for least, following in zip(_BANDS, (*_BANDS[1:], None), strict=True):
        index = (held.count >= least) & (held.count < (following or np.inf)) & (held.p != 0.5)
        if not index.any():
            continue
        gains = {name: _gains(margin, base, held, index) for name, margin in margins.items()}
        people = len(set(held.users[index].tolist()))
        most = None if following is None else following - 1
        found.append(CountGroup(least, most, people, int(index.sum()), gains))
    return found


def _new_users(chosen: Mapping[str, Sequence["PartResult"]], held: _Held, after: Sequence[int]) -> list[NewUsers]:
    found = []
    for i, k in enumerate(after):
        margins = {name: _joined([part.new[i] for part in parts]) for name, parts in chosen.items()}
        base = margins[BEST_BASELINE]
        index = ~np.isnan(base) & (held.p != 0.5)
        if not index.any():
            continue
        p, users = held.p[index], held.users[index]
        accuracy = {n: estimate(correct(m[index], p), users) for n, m in margins.items()}
        loss = {n: estimate(nll(m[index], p), users) for n, m in margins.items()}
        gains = {n: _gains(m, base, held, index) for n, m in margins.items() if n not in (*BASELINES, BEST_BASELINE)}
        found.append(NewUsers(k, len(set(users.tolist())), len(p), accuracy, loss, gains))
    return found
