"""What the paper leads one to expect of the rows of a table, judged by the figures at hand."""

import math
from dataclasses import dataclass

import numpy as np

from prm.experiments.rows import Claim, Experiment, Result, Results, Verdict
from prm.io.formatting import estimated, figure

_FAR, _NEAR = 10.0, 5.0  # points
_FAST = 0.8  # accuracy on the validation part by which learning speeds are told apart
_EQUAL = 2e-3  # accuracy, and nats, between rows that differ by rounding and by where the optimiser stopped


@dataclass(frozen=True)
class JudgedClaim:
    """A claim, whether it holds, and the figures it was judged by.

    It is open (`None`) where one of its rows was not run, or a figure is missing: nobody held out is of that kind.
    """

    words: str
    holds: bool | None
    figures: str

    @property
    def answer(self) -> str:
        """In a word or two."""
        return {True: "yes", False: "NO", None: "open"}[self.holds]


def judge(experiment: Experiment, results: Results) -> list[JudgedClaim]:
    """Every claim of the experiment on the rows at hand."""
    found = []
    for claim in experiment.claims:
        there = all(row in results for row in claim.rows)
        holds, figures = claim.judge(results) if there else (None, "-")
        found.append(JudgedClaim(claim.words, holds, figures))
    return found


def is_far_above(row: str, uniform: str) -> Claim:
    """Accuracy-top at least 10 points above the uniform model's."""

    def judge(results: Results) -> Verdict:
        ours, theirs = _tops(results, row, uniform)
        return _judged(ours - theirs >= _FAR, f"{figure(ours)} against {figure(theirs)}", ours, theirs)

    return Claim(f"{row} is at least {_FAR:g} points above {uniform}", (row, uniform), judge)


def is_below(row: str, other: str) -> Claim:
    """Accuracy-top below the other row's."""

    def judge(results: Results) -> Verdict:
        ours, theirs = _tops(results, row, other)
        return _judged(ours < theirs, f"{figure(ours)} against {figure(theirs)}", ours, theirs)

    return Claim(f"{row} is below {other}", (row, other), judge)


def minority_keeps_up(row: str) -> Claim:
    """Per-user accuracy of the minority within 5 points of the majority's, or above it."""

    def judge(results: Results) -> Verdict:
        means = [100 * group.mean for group in results[row].groups.values()]
        if len(means) < 2:
            return None, "nobody held out is of another group"
        shown = f"majority {figure(means[0])}, minority {figure(means[-1])}"
        return _judged(means[0] - means[-1] <= _NEAR, shown, means[0], means[-1])

    return Claim(f"{row}: the minority is within {_NEAR:g} points of the majority", (row,), judge)


def strangers_fare_alike(row: str, uniform: str) -> Claim:
    """Accuracy-generic inside the interval of the uniform model's."""

    def judge(results: Results) -> Verdict:
        ours, theirs = results[row].generic, results[uniform].generic
        if ours is None or theirs is None:
            return None, "nobody is a stranger"
        shown = f"{figure(100 * ours.value)} against {estimated(theirs, scale=100.0)}"
        return _judged(theirs.low <= ours.value <= theirs.high, shown, ours.value, theirs.low, theirs.high)

    return Claim(f"strangers fare with {row} as with {uniform}", (row, uniform), judge)


def stranger_wanders(row: str, steady: str) -> Claim:
    """The unknown user's likelihood varies more over the second half of training than where alpha < 1 trains it.

    Likelihood tells it on validation parts that are too small for accuracy to.
    """

    def spread(result: Result) -> float:
        late = result.looks[len(result.looks) // 2 :]
        return float(np.std([look.generic_nll for look in late])) if late else math.nan

    def judge(results: Results) -> Verdict:
        ours, theirs = spread(results[row]), spread(results[steady])
        shown = f"standard deviation {figure(ours, 3)} against {figure(theirs, 3)} nats"
        return _judged(ours > theirs, shown, ours, theirs)

    return Claim(f"{row}: the unknown user wanders more than with {steady}", (row, steady), judge)


def learns_slower(row: str, other: str) -> Claim:
    """More steps to 80% accuracy on the validation part."""

    def steps(result: Result) -> float:
        return next((look.step for look in result.looks if look.accuracy >= _FAST), float("inf"))

    def judge(results: Results) -> Verdict:
        ours, theirs = steps(results[row]), steps(results[other])
        shown = " against ".join(f"{n:g} steps" if np.isfinite(n) else "never" for n in (ours, theirs))
        looks = [look.accuracy for name in (row, other) for look in results[name].looks] or [math.nan]
        return _judged(ours > theirs, f"{shown} to {100 * _FAST:.0f}%", *looks)

    return Claim(f"{row} learns more slowly than {other}", (row, other), judge)


def strangers_gain(row: str, other: str) -> Claim:
    """Accuracy-generic at least 10 points above the other row's: what people say tells a stranger's taste."""

    def judge(results: Results) -> Verdict:
        ours, theirs = results[row].generic, results[other].generic
        if ours is None or theirs is None:
            return None, "nobody is a stranger"
        shown = f"{figure(100 * ours.value)} against {figure(100 * theirs.value)}"
        return _judged(100 * (ours.value - theirs.value) >= _FAR, shown, ours.value, theirs.value)

    return Claim(f"strangers gain at least {_FAR:g} points from {row} over {other}", (row, other), judge)


def group_beats(row: str, group: str, controls: tuple[str, ...]) -> Claim:
    """Per-user accuracy of one group at or above that of each control."""

    def judge(results: Results) -> Verdict:
        found = results[row].groups.get(group)
        if found is None:
            return None, f"nobody held out is of {group!r}"
        beside = {name: found.controls.get(name, math.nan) for name in controls}
        shown = ", ".join(f"{name} {figure(100 * value)}" for name, value in beside.items())
        above = all(found.mean >= value for value in beside.values())
        return _judged(above, f"{figure(100 * found.mean)}; {shown}", found.mean, *beside.values())

    return Claim(f"{row}: {group} is at or above {' and '.join(controls)}", (row,), judge)


def are_equal(row: str, other: str, why: str) -> Claim:
    """Equal by construction, in accuracy and likelihood."""

    def judge(results: Results) -> Verdict:
        ours, theirs = results[row], results[other]
        same = abs(ours.top.value - theirs.top.value) <= _EQUAL and abs(ours.nll.value - theirs.nll.value) <= _EQUAL
        shown = [f"{figure(100 * r.top.value, 2)}%, {figure(r.nll.value, 4)} nats" for r in (ours, theirs)]
        values = (e.value for r in (ours, theirs) for e in (r.top, r.nll))
        return _judged(same, " and ".join(shown), *values)

    return Claim(f"{row} equals {other}: {why}", (row, other), judge)


def _judged(holds: bool, figures: str, *values: float) -> Verdict:
    """Open where one of the values that it was judged by is no finite number."""
    return (holds if all(map(math.isfinite, values)) else None), figures


def _tops(results: Results, *rows: str) -> tuple[float, ...]:
    return tuple(100 * results[name].top.value for name in rows)
