"""Claims of the paper about the rows of a table, and whether our figures support them."""

import math
from dataclasses import dataclass

import numpy as np

from prm.experiments.experiment_parts import Claim, Experiment, Result, Results, Verdict
from prm.io.formatting import estimated, figure

_LARGE_GAP, _SMALL_GAP = 10.0, 5.0  # points
_LEARNT_ACCURACY = 0.8  # accuracy on the validation part; learning speed is the number of steps to it
_TOLERANCE = 2e-3  # in accuracy, and in nats, between rows that differ only by rounding and the optimiser's last step


@dataclass(frozen=True)
class JudgedClaim:
    """A claim, whether it holds, and the figures that decide it.

    It is open (`None`) if one of its rows was not run, or a figure is missing because no held-out user is of that
    kind.
    """

    words: str
    holds: bool | None
    figures: str

    @property
    def answer(self) -> str:
        """`holds` as a word."""
        return {True: "yes", False: "NO", None: "open"}[self.holds]


def judge(experiment: Experiment, results: Results) -> list[JudgedClaim]:
    """Evaluate every claim of the experiment on the rows that were run."""
    judged = []
    for claim in experiment.claims:
        complete = all(row in results for row in claim.rows)
        holds, figures = claim.judge(results) if complete else (None, "-")
        judged.append(JudgedClaim(claim.words, holds, figures))
    return judged


def is_far_above(row: str, uniform: str) -> Claim:
    """Accuracy-top at least 10 points above the uniform model's."""

    def judge(results: Results) -> Verdict:
        ours, theirs = _tops(results, row, uniform)
        return _verdict(ours - theirs >= _LARGE_GAP, f"{figure(ours)} against {figure(theirs)}", ours, theirs)

    return Claim(f"{row} is at least {_LARGE_GAP:g} points above {uniform}", (row, uniform), judge)


def is_below(row: str, other: str) -> Claim:
    """Accuracy-top below the other row's."""

    def judge(results: Results) -> Verdict:
        ours, theirs = _tops(results, row, other)
        return _verdict(ours < theirs, f"{figure(ours)} against {figure(theirs)}", ours, theirs)

    return Claim(f"{row} is below {other}", (row, other), judge)


def minority_keeps_up(row: str) -> Claim:
    """Mean accuracy over the minority's users within 5 points of the majority's, or above it."""

    def judge(results: Results) -> Verdict:
        means = [100 * group.mean for group in results[row].groups.values()]
        if len(means) < 2:
            return None, "no held-out user is of another group"
        figures = f"majority {figure(means[0])}, minority {figure(means[-1])}"
        return _verdict(means[0] - means[-1] <= _SMALL_GAP, figures, means[0], means[-1])

    return Claim(f"{row}: the minority is within {_SMALL_GAP:g} points of the majority", (row,), judge)


def unknown_users_fare_alike(row: str, uniform: str) -> Claim:
    """Accuracy-generic inside the interval of the uniform model's."""

    def judge(results: Results) -> Verdict:
        ours, theirs = results[row].generic, results[uniform].generic
        if ours is None or theirs is None:
            return None, "no user is unknown"
        figures = f"{figure(100 * ours.value)} against {estimated(theirs, scale=100.0)}"
        return _verdict(theirs.low <= ours.value <= theirs.high, figures, ours.value, theirs.low, theirs.high)

    return Claim(f"unknown users: {row} is as accurate as {uniform}", (row, uniform), judge)


def generic_varies_more(row: str, steady: str) -> Claim:
    """The generic user's log loss varies more over the second half of training than with alpha < 1, which trains it.

    The log loss shows this on validation parts that are too small for accuracy.
    """

    def spread(result: Result) -> float:
        late = result.looks[len(result.looks) // 2 :]
        return float(np.std([e.generic_nll for e in late])) if late else math.nan

    def judge(results: Results) -> Verdict:
        ours, theirs = spread(results[row]), spread(results[steady])
        figures = f"standard deviation {figure(ours, 3)} against {figure(theirs, 3)} nats"
        return _verdict(ours > theirs, figures, ours, theirs)

    return Claim(f"{row}: the generic user's log loss varies more than with {steady}", (row, steady), judge)


def steps_to_learn(result: Result) -> float:
    """Training steps to 80% accuracy on the validation part; infinite if it never got there."""
    return next((e.step for e in result.looks if e.accuracy >= _LEARNT_ACCURACY), float("inf"))


def learns_slower(row: str, other: str) -> Claim:
    """More steps to 80% accuracy on the validation part."""

    def judge(results: Results) -> Verdict:
        ours, theirs = steps_to_learn(results[row]), steps_to_learn(results[other])
        figures = " against ".join(f"{n:g} steps" if np.isfinite(n) else "never" for n in (ours, theirs))
        accuracies = [e.accuracy for name in (row, other) for e in results[name].looks] or [math.nan]
        return _verdict(ours > theirs, f"{figures} to {100 * _LEARNT_ACCURACY:.0f}%", *accuracies)

    return Claim(f"{row} learns more slowly than {other}", (row, other), judge)


def unknown_users_gain(row: str, other: str) -> Claim:
    """Accuracy-generic at least 10 points above the other row's: user texts predict the preferences of new users."""

    def judge(results: Results) -> Verdict:
        ours, theirs = results[row].generic, results[other].generic
        if ours is None or theirs is None:
            return None, "no user is unknown"
        figures = f"{figure(100 * ours.value)} against {figure(100 * theirs.value)}"
        return _verdict(100 * (ours.value - theirs.value) >= _LARGE_GAP, figures, ours.value, theirs.value)

    return Claim(f"unknown users: {row} is at least {_LARGE_GAP:g} points above {other}", (row, other), judge)


def group_beats(row: str, group: str, controls: tuple[str, ...]) -> Claim:
    """Mean accuracy over the users of one group at or above that of each baseline."""

    def judge(results: Results) -> Verdict:
        result = results[row].groups.get(group)
        if result is None:
            return None, f"no held-out user is of {group!r}"
        baselines = {name: result.controls.get(name, math.nan) for name in controls}
        figures = ", ".join(f"{name} {figure(100 * value)}" for name, value in baselines.items())
        above = all(result.mean >= value for value in baselines.values())
        return _verdict(above, f"{figure(100 * result.mean)}; {figures}", result.mean, *baselines.values())

    return Claim(f"{row}: {group} is at or above {' and '.join(controls)}", (row,), judge)


def are_equal(row: str, other: str, why: str) -> Claim:
    """Equal by construction, in accuracy and log loss."""

    def judge(results: Results) -> Verdict:
        ours, theirs = results[row], results[other]
        same = (
            abs(ours.top.value - theirs.top.value) <= _TOLERANCE
            and abs(ours.nll.value - theirs.nll.value) <= _TOLERANCE
        )
        figures = [f"{figure(100 * r.top.value, 2)}%, {figure(r.nll.value, 4)} nats" for r in (ours, theirs)]
        values = (e.value for r in (ours, theirs) for e in (r.top, r.nll))
        return _verdict(same, " and ".join(figures), *values)

    return Claim(f"{row} equals {other}: {why}", (row, other), judge)


def _verdict(holds: bool, figures: str, *values: float) -> Verdict:
    """The verdict; open if one of the values that decide it is not finite."""
    return (holds if all(map(math.isfinite, values)) else None), figures


def _tops(results: Results, *rows: str) -> tuple[float, ...]:
    return tuple(100 * results[name].top.value for name in rows)
