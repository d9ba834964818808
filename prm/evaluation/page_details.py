"""What the page of an evaluation shows beside its figures: users, groups of users, calibration with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prm.evaluation.audit.per_user import UserResults, user_results
from prm.evaluation.evaluate import Evaluation, Scored
from prm.evaluation.rows import GENERIC, PERSONAL, UNIFORM
from prm.evaluation.training_counts import GROUPS, group_of, name_of
from prm.metrics import Array, Estimate, correct, estimate, nll, picked

_RESAMPLES, _AT_ONCE, _BLOCKS = 2000, 100, 5000


@dataclass(frozen=True)
class TrainingGroup:
    """Gains over the baseline of users with about equally many training comparisons.

    Args:
        train_comparisons: the number of them, such as "10 to 29"; "0" are users whom the model does not know.
        points: gain in accuracy.
        nats: decrease in log loss.
    """

    train_comparisons: str
    people: int
    comparisons: int
    points: Estimate
    nats: Estimate


@dataclass(frozen=True)
class Details:
    """An evaluation looked at closely.

    Args:
        baseline: the model that users and groups are compared with: the uniform one, or else the generic user.
        known: users that the model knows; people: gain or loss of each of them.
        by_training: all users by number of training comparisons, if that is known and makes two groups or more.
        calibration: expected calibration error of each model; its interval is corrected for bias.
    """

    baseline: str
    known: frozenset[str]
    people: UserResults
    by_training: tuple[TrainingGroup, ...]
    calibration: dict[str, Estimate]


def details_of(result: Evaluation) -> Details:
    """The details of an evaluation that this process made (`scored` is not in its JSON)."""
    if (scored := result.scored) is None:
        raise ValueError("the evaluation was read from a file, without its margins")
    baseline = UNIFORM if UNIFORM in scored.models else GENERIC
    margins, labels = {name: scored.models[name] for name in (PERSONAL, baseline)}, scored.labels
    known = np.flatnonzero(labels.known)
    users: list[str] = labels.users[known].tolist()
    people = user_results(
        margins[PERSONAL][known],
        margins[baseline][known],
        labels.p[known],
        users,
        [scored.prompts[i] for i in known.tolist()],
    )
    errors = {name: calibration_error(margin, labels.p, labels.units) for name, margin in margins.items()}
    return Details(baseline, frozenset(users), people, _by_training(scored, baseline), errors)


def _by_training(scored: Scored, baseline: str) -> tuple[TrainingGroup, ...]:
    labels, ours, theirs = scored.labels, scored.models[PERSONAL], scored.models[baseline]
    groups = {user: group_of(n) for user, n in scored.train_comparisons.items() if n is not None}
    group = np.array([groups.get(user, -1) for user in labels.users.tolist()])
    right = correct(ours, labels.p) - correct(theirs, labels.p)
    nats = nll(theirs, labels.p) - nll(ours, labels.p)
    found = [
        TrainingGroup(
            name_of(minimum),
            len(set(labels.users[part].tolist())),
            int(part.sum()),
            estimate(right[part], labels.units[part]),
            estimate(nats[part], labels.units[part]),
        )
        for minimum in GROUPS
        if (part := group == minimum).any()
    ]
    return tuple(found) if len(found) > 1 else ()


def calibration_error(margin: Array, p: Array, units: Sequence[str] | NDArray[np.str_], seed: int = 0) -> Estimate:
    """Expected calibration error (`prm.metrics.calibration`) with a 95% interval by bootstrap over units.

    Resampling adds to the error as much as sampling did, so the interval is the basic bootstrap's, which takes that off
    again. It begins at 0 if a calibrated model would show such an error by chance in more than 1 of 40 samples. It is
    infinite for a single unit.
    """
    confidence, won, bin_of_pair = picked(margin, p)
    if not len(confidence):
        return Estimate(float("nan"), float("-inf"), float("inf"))
    names, unit = np.unique(np.asarray(units), return_inverse=True)
    draw = np.random.default_rng(seed)
    if len(names) > _BLOCKS:  # as in `prm.metrics.ratio`
        unit = (draw.permutation(len(names)) % _BLOCKS)[unit]
    size, bins = int(unit.max()) + 1, int(bin_of_pair.max()) + 1
    sums = np.bincount(unit * bins + bin_of_pair, confidence - won, size * bins).reshape(size, bins)
    counts = np.bincount(unit, minlength=size)
    value = float(np.abs(sums.sum(0)).sum() / counts.sum())
    if size < 2:
        return Estimate(value, float("-inf"), float("inf"))
    errors = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        weights = draw.multinomial(size, np.full(size, 1.0 / size), _AT_ONCE)
        errors.append(np.abs(weights @ sums).sum(1) / (weights @ counts))
    low, high = np.quantile(np.concatenate(errors), [0.025, 0.975])
    deviations = np.sqrt(np.bincount(bin_of_pair, confidence * (1.0 - confidence)))
    by_chance = np.abs(draw.normal(0.0, deviations, (_RESAMPLES, bins))).sum(1) / counts.sum()
    is_small = value <= np.quantile(by_chance, 0.975)
    return Estimate(value, 0.0 if is_small else max(0.0, 2 * value - float(high)), max(value, 2 * value - float(low)))
