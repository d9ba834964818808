"""The evaluations of several runs combined: different splits of one log, or different parts of it held out in turn."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import numpy as np

from prm.checks import Natural
from prm.errors import CheckpointError, PrmError
from prm.evaluation.rows import PERSONAL, SAVED, SAVED_OVER, UNIFORM
from prm.evaluation.verdict import BASELINES, Against, Verdict, verdict_on
from prm.io.missing import no_such
from prm.io.rows import Json
from prm.io.run_files import FieldsOf, Overlap, read_json, refuse_unfit, result_file
from prm.io.tables import plain
from prm.metrics import Estimate, ratio

logger = logging.getLogger(__name__)

_BANDS = (0, 1, 5, 10, 20, 30, 50, 100, 200)  # minimum number of training comparisons of each group of users


class _Entry(TypedDict):
    """An evaluation's entry for a user, besides accuracies and nats."""

    comparisons: Natural
    ties: Natural
    train_comparisons: NotRequired[Natural | None]


class _Evaluation(TypedDict):
    overlap: NotRequired[Overlap | None]
    per_user: dict[str, Annotated[dict[str, float], FieldsOf(_Entry)]]
    users: NotRequired[Natural]


@dataclass(frozen=True)
class PooledGain:
    """Gains of the personal over the tuned uniform model; intervals by bootstrap over users.

    A user who is in several runs counts as one user, with all their comparisons.

    Args:
        gain, gain_nll: mean over comparisons of the gain in accuracy and of the decrease in log loss (nats).
        gain_macro, gain_nll_macro: the same, as means over users of each user's mean.
    """

    people: int
    comparisons: int
    gain: Estimate
    gain_nll: Estimate
    gain_macro: Estimate
    gain_nll_macro: Estimate


@dataclass(frozen=True)
class Pooled:
    """Gains over all runs, and by the number of comparisons that a user's run was trained on.

    Args:
        verdict: on all users, against the best of the baselines that every evaluation has.
        by_train_comparisons: (minimum, maximum; gains) of each group that has users; the last has no maximum. A
            user may be in different groups in different runs.
    """

    runs: int
    verdict: Verdict
    everybody: PooledGain
    by_train_comparisons: list[tuple[int, int | None, PooledGain]]

    @property
    def pays_from(self) -> tuple[int | None, int | None]:
        """Minimum number of training comparisons from which every group clearly gains: in accuracy, in log loss."""
        return self._clear_from(lambda g: g.gain.low), self._clear_from(lambda g: g.gain_nll.low)

    def _clear_from(self, low: Callable[[PooledGain], float]) -> int | None:
        first = None
        for minimum, _, gains in reversed(self.by_train_comparisons):
            if low(gains) <= 0.0:
                break
            first = minimum
        return first

    def to_dict(self) -> dict[str, Json]:
        """JSON-ready."""
        return plain(asdict(self)) | {"pays_from": self.pays_from}


def pool(runs: Sequence[str | Path], data: str = "test", more_than: int | None = None) -> Pooled:
    """Combine the evaluations that `prm evaluate` has written to run folders.

    Args:
        data: name of the log that they were evaluated on, without its extension; the held-out parts if not given.
        more_than: only users with more than this many training comparisons in their run.

    Raises `PrmError` naming a run that was not evaluated or has no uniform model, and if no user is left.
    """
    entries = [pair for run in runs for pair in _entries(Path(run), data).items()]
    if more_than is not None:
        entries = [(user, entry) for user, entry in entries if entry["train_comparisons"] > more_than]
    if not entries:
        raise PrmError(f"no user in {len(runs)} runs has more than {more_than} training comparisons")
    bands = []
    for low, high in zip(_BANDS, (*_BANDS[1:], None), strict=True):
        in_band = [
            (u, e)
            for u, e in entries
            if low <= e["train_comparisons"] and (high is None or e["train_comparisons"] < high)
        ]
        if in_band:
            bands.append((low, None if high is None else high - 1, _gains(in_band)))
    return Pooled(len(runs), _verdict(entries), _gains(entries), bands)


def _verdict(entries: Sequence[tuple[str, dict[str, float]]]) -> Verdict:
    with_decided = [entry for _, entry in entries if entry["comparisons"] > entry["ties"]]
    names = [name for name in BASELINES if all(name in entry for entry in with_decided)]
    against = [_against(entries, name) for name in names]
    decided, people = int(sum(e["comparisons"] - e["ties"] for e in with_decided)), len({user for user, _ in entries})
    return verdict_on(_over_users(entries, lambda e: e[PERSONAL]), against, decided, people)


def _against(entries: Sequence[tuple[str, dict[str, float]]], name: str) -> Against:
    key = SAVED_OVER.get(name)
    known = key is not None and all(key in entry for _, entry in entries)
    return Against(
        name,
        _over_users(entries, lambda e: e[name]),
        _over_users(entries, lambda e: e[PERSONAL] - e[name]),
        _over_users(entries, lambda e: e[str(key)], ties=True) if known else None,
    )


def _over_users(
    entries: Sequence[tuple[str, dict[str, float]]],
    value: Callable[[Mapping[str, float]], float],
    ties: bool = False,
    per_user: bool = False,
) -> Estimate:
    """Mean over comparisons, with or without `ties`, of a value of the entries; interval over users.

    With `per_user` it is the mean over users of each user's mean.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for user, entry in entries:
        if n := entry["comparisons"] - (0 if ties else entry["ties"]):
            sums[user][0] += n * value(entry)
            sums[user][1] += n
    total, count = np.array(list(sums.values())).reshape(-1, 2).T
    return ratio(total / count, np.ones(len(count))) if per_user else ratio(total, count)


def _gains(entries: Sequence[tuple[str, dict[str, float]]]) -> PooledGain:
    return PooledGain(
        people=len({user for user, _ in entries}),
        comparisons=int(sum(entry["comparisons"] for _, entry in entries)),
        gain=_over_users(entries, _accuracy_gain),
        gain_nll=_over_users(entries, _nats_gain, ties=True),
        gain_macro=_over_users(entries, _accuracy_gain, per_user=True),
        gain_nll_macro=_over_users(entries, _nats_gain, ties=True, per_user=True),
    )


def _accuracy_gain(entry: Mapping[str, float]) -> float:
    return entry[PERSONAL] - entry[UNIFORM]


def _nats_gain(entry: Mapping[str, float]) -> float:
    return entry[SAVED]


def _entries(run: Path, data: str) -> dict[str, dict[str, float]]:
    stored, again = result_file(run, "evaluation", data), f"run 'prm evaluate {run}' again"
    if not run.is_dir():
        raise CheckpointError(no_such(run, "folder"))
    if not stored.exists():
        raise PrmError(f"{stored} is missing: run 'prm evaluate {run}' first")
    evaluation = read_json(stored, _Evaluation, again)
    table = evaluation["per_user"]
    if (overlap := evaluation.get("overlap")) and overlap["own"]:
        logger.warning(
            "%s was trained on %d of the comparisons of %s: its results are too good", run, overlap["own"], data
        )
    if (users := evaluation.get("users", len(table))) != len(table):
        raise CheckpointError(f"{stored} is damaged: 'per_user' holds {len(table)} of {users} users: {again}")
    names = {name for entry in table.values() for name in (*BASELINES, *SAVED_OVER.values()) if name in entry}
    for user, entry in table.items():
        if SAVED not in entry or entry.get("train_comparisons") is None:
            raise PrmError(
                f"{stored} has no {SAVED!r} or 'train_comparisons' of {user!r}: the run has no uniform model, or was "
                f"evaluated by an earlier version; run 'prm evaluate {run}' again"
            )
        decided = entry["comparisons"] > entry["ties"]  # users with ties only have no accuracy
        for name in {PERSONAL, *names} if decided else names & set(SAVED_OVER.values()):
            refuse_unfit(stored, float, entry.get(name), f"per_user.{user}.{name}", again)
    return table
