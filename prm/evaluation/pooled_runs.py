"""Several evaluated runs taken together: other splits of the same log, or other parts of it held out in turn."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from prm.checks import Natural
from prm.errors import CheckpointError, PrmError
from prm.evaluation.rows import PERSONAL, SAVED, SAVED_OVER, UNIFORM
from prm.evaluation.verdict import BASELINES, Against, Verdict, verdict_on
from prm.io.run_files import read_json, refuse_unfit, result_file
from prm.io.tables import plain
from prm.metrics import Estimate, ratio

_BANDS = (0, 1, 5, 10, 20, 30, 50, 100, 200)  # fewest judgements of each group of people


class _Entry(TypedDict):
    """What an evaluation says of a person, beside accuracies and nats."""

    comparisons: Natural
    ties: Natural
    judgements: NotRequired[Natural | None]


class _Evaluation(TypedDict):
    per_user: dict[str, _Entry]
    users: NotRequired[Natural]


@dataclass(frozen=True)
class PooledGain:
    """Gains of the personal over the tuned uniform model; intervals by bootstrap over people.

    Whoever is judged in several runs is one person, with all their comparisons.

    Args:
        gain, gain_nll: per comparison: accuracy, nats saved.
        gain_macro, gain_nll_macro: each person's own mean, every person alike.
    """

    people: int
    comparisons: int
    gain: Estimate
    gain_nll: Estimate
    gain_macro: Estimate
    gain_nll_macro: Estimate


@dataclass(frozen=True)
class Pooled:
    """Gains of all runs together, and of people by how many judgements their run has learnt from.

    Args:
        verdict: on everybody, beside the best of the baselines that every evaluation has.
        by_judgements: (fewest, most judgements; gains) of each group with somebody in it; no most in the last one.
            Somebody may be in one group in one run and in another in the next.
    """

    runs: int
    verdict: Verdict
    everybody: PooledGain
    by_judgements: list[tuple[int, int | None, PooledGain]]

    @property
    def pays_from(self) -> tuple[int | None, int | None]:
        """Fewest judgements from which on every group surely gains per comparison: in accuracy, and in nats."""
        return self._sure_from(lambda g: g.gain.low), self._sure_from(lambda g: g.gain_nll.low)

    def _sure_from(self, low: Callable[[PooledGain], float]) -> int | None:
        found = None
        for fewest, _, gains in reversed(self.by_judgements):
            if low(gains) <= 0.0:
                break
            found = fewest
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found: dict[str, Any] = plain(asdict(self)) | {"pays_from": self.pays_from}
        return found


def pool(runs: Sequence[str | Path], data: str = "test", more_than: int | None = None) -> Pooled:
    """The evaluations that `prm evaluate` left in run folders, as one.

    Args:
        data: name of the log that they were evaluated on, without its ending; the held-out parts if not given.
        more_than: only people of whom their run has learnt from more comparisons than that.

    Raises `PrmError` naming the run that was not evaluated, or has no uniform model to be compared with, and where
    nobody is left.
    """
    entries = [pair for run in runs for pair in _entries(Path(run), data).items()]
    if more_than is not None:
        entries = [(user, entry) for user, entry in entries if entry["judgements"] > more_than]
    if not entries:
        raise PrmError(f"nobody in {len(runs)} runs has more than {more_than} comparisons to learn from")
    bands = []
    for low, high in zip(_BANDS, (*_BANDS[1:], None), strict=True):
        some = [(u, e) for u, e in entries if low <= e["judgements"] and (high is None or e["judgements"] < high)]
        if some:
            bands.append((low, None if high is None else high - 1, _gains(some)))
    return Pooled(len(runs), _verdict(entries), _gains(entries), bands)


def _verdict(entries: Sequence[tuple[str, dict[str, float]]]) -> Verdict:
    judged = [entry for _, entry in entries if entry["comparisons"] > entry["ties"]]
    names = [name for name in BASELINES if all(name in entry for entry in judged)]
    against = [_against(entries, name) for name in names]
    decided, people = int(sum(e["comparisons"] - e["ties"] for e in judged)), len({user for user, _ in entries})
    return verdict_on(_over_people(entries, lambda e: e[PERSONAL]), against, decided, f"{people} people")


def _against(entries: Sequence[tuple[str, dict[str, float]]], name: str) -> Against:
    key = SAVED_OVER.get(name)
    known = key is not None and all(key in entry for _, entry in entries)
    return Against(
        name,
        _over_people(entries, lambda e: e[name]),
        _over_people(entries, lambda e: e[PERSONAL] - e[name]),
        _over_people(entries, lambda e: e[str(key)], ties=True) if known else None,
    )


def _over_people(
    entries: Sequence[tuple[str, dict[str, float]]],
    value: Callable[[Mapping[str, float]], float],
    ties: bool = False,
    alike: bool = False,
) -> Estimate:
    """Mean over comparisons, `ties` among them or not, of what entries say of theirs; interval over people.

    With `alike` every person counts as much as any other.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for user, entry in entries:
        if n := entry["comparisons"] - (0 if ties else entry["ties"]):
            sums[user][0] += n * value(entry)
            sums[user][1] += n
    total, count = np.array(list(sums.values())).reshape(-1, 2).T
    return ratio(total / count, np.ones(len(count))) if alike else ratio(total, count)


def _gains(entries: Sequence[tuple[str, dict[str, float]]]) -> PooledGain:
    return PooledGain(
        people=len({user for user, _ in entries}),
        comparisons=int(sum(entry["comparisons"] for _, entry in entries)),
        gain=_over_people(entries, _points),
        gain_nll=_over_people(entries, _saved, ties=True),
        gain_macro=_over_people(entries, _points, alike=True),
        gain_nll_macro=_over_people(entries, _saved, ties=True, alike=True),
    )


def _points(entry: Mapping[str, float]) -> float:
    return entry[PERSONAL] - entry[UNIFORM]


def _saved(entry: Mapping[str, float]) -> float:
    return entry[SAVED]


def _entries(run: Path, data: str) -> dict[str, dict[str, float]]:
    stored, again = result_file(run, "evaluation", data), f"run 'prm evaluate {run}' again"
    if not stored.exists():
        raise PrmError(f"{stored} is missing: run 'prm evaluate {run}' first")
    found = read_json(stored, _Evaluation, again)
    table: dict[str, dict[str, float]] = found["per_user"]
    if (people := found.get("users", len(table))) != len(table):
        raise CheckpointError(f"{stored} is damaged: 'per_user' holds {len(table)} of {people} people: {again}")
    names = {name for entry in table.values() for name in (*BASELINES, *SAVED_OVER.values()) if name in entry}
    for user, entry in table.items():
        if SAVED not in entry or entry.get("judgements") is None:
            raise PrmError(
                f"{stored} has no {SAVED!r} or 'judgements' of {user!r}: the run has no uniform model beside it, or "
                f"was evaluated by an earlier version; run 'prm evaluate {run}' again"
            )
        decided = entry["comparisons"] > entry["ties"]  # who has but ties has no accuracy
        for name in {PERSONAL, *names} if decided else names & set(SAVED_OVER.values()):
            refuse_unfit(stored, float, entry.get(name), f"per_user.{user}.{name}", again)
    return table
