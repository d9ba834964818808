"""From how many comparisons does it pay: new users fitted to their first k, measured on others (`prm cold_start`)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prm.data import baselines
from prm.data.comparison import Comparison, require_list
from prm.data.splits import SplitBy, split
from prm.errors import PrmError
from prm.evaluation.evaluate import open_scorers, score_margins
from prm.evaluation.rows import GENERIC, LENGTH_SIGN, LONGEST, PERSONAL, UNIFORM, Labels, MetricsRow, gains, make_rows
from prm.evaluation.verdict import Verdict, verdict_of
from prm.io.tables import plain
from prm.metrics import Estimate


@dataclass(frozen=True)
class ColdStartStep:
    """Newcomers of whom `after` judgements each were learnt from; gains over the tuned uniform model.

    `verdict` is beside the best baseline, length signs from the same judgements.
    """

    after: int
    verdict: Verdict
    rows: list[MetricsRow]
    gain: Estimate | None
    gain_nll: Estimate | None


@dataclass(frozen=True)
class ColdStart:
    """The same people and the same held-out comparisons at every step.

    Args:
        people: who had enough judgements to learn from, and some to be measured by.
        comparisons: held out, all of theirs.
        left_out: newcomers who had too few.
        known: people of the log whom the run has learnt from: no newcomers.
        by: what a person's two parts share nothing of.
    """

    steps: list[ColdStartStep]
    people: int
    comparisons: int
    left_out: int
    known: int
    by: str

    @property
    def pays_from(self) -> int | None:
        """Fewest judgements from which on, in all later steps too, people surely gain over every baseline."""
        found = None
        for step in reversed(self.steps):
            if not step.verdict.pays:
                break
            found = step.after
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return plain(asdict(self)) | {"pays_from": self.pays_from}


def cold_start_run(
    run: str | Path,
    comparisons: Sequence[Comparison],
    after: Sequence[int],
    by: SplitBy = "prompt",
    seed: int = 0,
    against: str | Path | None = None,
    backbone: str | None = None,
) -> ColdStart:
    """Fit everybody whom the run does not know to their first k judgements, for each k, in memory.

    Half of each newcomer's comparisons are held out, by `by`; the others come in a seeded order, or as they came where
    `by` is `time`. Ties are left out.

    Args:
        after: numbers k of judgements to learn from; 0 is the unknown user.

    Raises `PrmError` where nobody new has enough judgements, and for a uniform model.
    """
    after = require_list("after", after)
    if not after or min(after) < 0:
        raise PrmError(f"numbers of judgements must be 0 or more, got {list(after)}")
    scorer, uniform = open_scorers(run, against, backbone)
    theirs: dict[str, list[Comparison]] = defaultdict(list)
    for c in comparisons:
        if not c.is_tie:
            theirs[c.user_id].append(c)
    new = {user: log for user, log in theirs.items() if not scorer.knows(user)}
    parts = {user: _parts(log, by, seed) for user, log in new.items()}
    parts = {user: part for user, part in parts.items() if len(part[0]) >= max(after) and part[1]}
    if not parts:
        raise PrmError(f"nobody whom the run does not know has {max(after)} judgements beside those to be measured by")
    test = [c for _, held_out in parts.values() for c in held_out]
    users = np.array([c.user_id for c in test])
    labels = Labels(np.array([c.p_chosen for c in test]), users, users, np.ones(len(test), np.bool_))
    nobody = [None] * len(test)
    others = score_margins(scorer, test, {GENERIC: nobody})
    others |= score_margins(uniform, test, {UNIFORM: nobody}) if uniform is not None else {}
    steps = []
    for k in sorted(set(after)):
        learnt = [c for learn, _ in parts.values() for c in learn[:k]]
        scorer.adapt(learnt, list(parts), anew=True)
        margins = score_margins(scorer, test, {PERSONAL: users.tolist()}) | others
        rules = {
            LONGEST: baselines.longest(test),
            LENGTH_SIGN: baselines.length_sign(test, baselines.length_signs(learnt)),
        }
        verdict = verdict_of(margins, rules, labels, "people")
        steps.append(ColdStartStep(k, verdict, make_rows(margins, rules, labels), *gains(margins, labels)))
    return ColdStart(steps, len(parts), len(test), len(new) - len(parts), len(theirs) - len(new), by)


def _parts(log: list[Comparison], by: SplitBy, seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """(to learn from, in the order in which they come; held out) of one person; nothing where they cannot be parted."""
    try:
        learn, held_out = split(log, by, 0.5, seed)
    except PrmError:
        return [], []
    if by == "time":
        return learn, held_out
    order = np.random.default_rng([seed, len(log)]).permutation(len(learn))
    return [learn[i] for i in order], held_out
