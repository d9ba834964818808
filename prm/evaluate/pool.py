"""Several evaluated runs taken together: other splits of the same log, or other parts of it held out in turn."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prm.errors import PrmError
from prm.evaluate.rows import PERSONAL, SAVED, UNIFORM
from prm.files import plain
from prm.metrics import Estimate, ratio


@dataclass(frozen=True)
class Pooled:
    """Gains of the personal over the tuned uniform model, of all runs together; intervals by bootstrap over people.

    Whoever is judged in several runs is one person, with all their comparisons.

    Args:
        gain, gain_nll: per comparison: accuracy, nats saved.
        gain_macro, gain_nll_macro: each person's own mean, every person alike.
    """

    runs: int
    people: int
    comparisons: int
    gain: Estimate
    gain_nll: Estimate
    gain_macro: Estimate
    gain_nll_macro: Estimate

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def pool(runs: Sequence[str | Path], data: str = "test", more_than: int | None = None) -> Pooled:
    """The evaluations that `prm evaluate` left in run folders, as one.

    Args:
        data: name of the log that they were evaluated on, without its ending; the held-out parts if not given.
        more_than: only people of whom their run has learnt from more comparisons than that.

    Raises `PrmError` naming the run that was not evaluated, or has no uniform model to be compared with, and where
    nobody is left.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])  # judged, right, comparisons, saved
    for run in runs:
        for user, entry in _entries(Path(run), data).items():
            if more_than is not None and entry["judgements"] <= more_than:
                continue
            judged, all_of_them = entry["comparisons"] - entry["ties"], entry["comparisons"]
            gained = judged * (entry[PERSONAL] - entry[UNIFORM]) if judged else 0.0
            for place, value in enumerate((judged, gained, all_of_them, all_of_them * entry[SAVED])):
                sums[user][place] += value
    if not sums:
        raise PrmError(f"nobody in {len(runs)} runs has more than {more_than} comparisons to learn from")
    judged, right, n, saved = np.array(list(sums.values())).T
    some = judged > 0
    return Pooled(
        runs=len(runs),
        people=len(sums),
        comparisons=int(n.sum()),
        gain=ratio(right, judged),
        gain_nll=ratio(saved, n),
        gain_macro=ratio(right[some] / judged[some], np.ones(int(some.sum()))),
        gain_nll_macro=ratio(saved / n, np.ones(len(n))),
    )


def _entries(run: Path, data: str) -> dict[str, dict[str, float]]:
    stored = run / f"evaluation-{data}.json"
    if not stored.is_file():
        raise PrmError(f"{stored} is missing: run 'prm evaluate {run}' first")
    table: dict[str, dict[str, float]] = json.loads(stored.read_text(encoding="utf-8"))["per_user"]
    for user, entry in table.items():
        if SAVED not in entry or entry.get("judgements") is None:
            raise PrmError(
                f"{stored} has no {SAVED!r} or 'judgements' of {user!r}: the run has no uniform model beside it, or "
                f"was evaluated by an earlier version; run 'prm evaluate {run}' again"
            )
    return table
