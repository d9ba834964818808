"""How many comparisons a new user needs: users fitted to their first k, evaluated on others (`prm cold_start`)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from prm.data import baselines
from prm.data.arguments import require_list
from prm.data.comparison import Comparison
from prm.data.splits import SplitBy, split
from prm.errors import PrmError
from prm.evaluation.evaluate import length_rule, open_scorers, score_margins
from prm.evaluation.rows import GENERIC, LONGEST, PERSONAL, UNIFORM, Labels, MetricsRow, gains, make_rows
from prm.evaluation.verdict import Verdict, verdict_of
from prm.io.rows import Json
from prm.io.tables import plain
from prm.metrics import Estimate


@dataclass(frozen=True)
class ColdStartStep:
    """New users after training on `after` comparisons of each; gains over the tuned uniform model.

    `verdict` is against the best baseline, with length signs from the same training comparisons.
    """

    after: int
    verdict: Verdict
    rows: list[MetricsRow]
    gain: Estimate | None
    gain_nll: Estimate | None


@dataclass(frozen=True)
class ColdStart:
    """The results of every step, all with the same users and the same held-out comparisons.

    Args:
        people: number of new users with enough comparisons to train on and some held out.
        comparisons: number of held-out comparisons of these users.
        left_out: number of new users with too few comparisons.
        known: number of users in the log that the run was trained on, and that are therefore not new.
        by: what a user's training and held-out part do not share.
    """

    steps: list[ColdStartStep]
    people: int
    comparisons: int
    left_out: int
    known: int
    by: str

    @property
    def pays_from(self) -> int | None:
        """Minimum number of comparisons from which every step is clearly better than every baseline."""
        first = None
        for step in reversed(self.steps):
            if not step.verdict.pays:
                break
            first = step.after
        return first

    def to_dict(self) -> dict[str, Json]:
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
    """Fit every user that the run does not know to their first k comparisons, for each k, in memory.

    Half of each new user's comparisons are held out, by `by`; the others are in a seeded random order, or in the log's
    order if `by` is `time`. Ties are left out.

    Args:
        after: numbers k of training comparisons; 0 is the generic user.

    Raises `PrmError` if no new user has enough comparisons, and for a uniform model.
    """
    from prm.scoring.update_users import update_users  # imports torch

    after = require_list("after", after)
    if not after or min(after) < 0:
        raise PrmError(f"numbers of comparisons must be 0 or more, got {list(after)}")
    scorer, uniform = open_scorers(run, against, backbone)
    logs: dict[str, list[Comparison]] = defaultdict(list)
    for c in comparisons:
        if not c.is_tie:
            logs[c.user_id].append(c)
    new = {user: log for user, log in logs.items() if not scorer.knows(user)}
    parts = {user: _parts(log, by, seed) for user, log in new.items()}
    parts = {user: part for user, part in parts.items() if len(part[0]) >= max(after) and part[1]}
    if not parts:
        raise PrmError(
            f"no user that the run does not know has {max(after)} training comparisons and some to hold out: "
            "lower --after, or add comparisons of new users"
        )
    test = [c for _, held_out in parts.values() for c in held_out]
    users = np.array([c.user_id for c in test])
    labels = Labels(np.array([c.p_chosen for c in test]), users, users, np.ones(len(test), np.bool_))
    generic = [None] * len(test)
    others = score_margins(scorer, test, {GENERIC: generic})
    others |= score_margins(uniform, test, {UNIFORM: generic}) if uniform is not None else {}
    steps = []
    for k in sorted(set(after)):
        training = [c for train, _ in parts.values() for c in train[:k]]
        update_users(scorer.checkpoint, scorer.reader, training, list(parts), anew=True)
        margins = score_margins(scorer, test, {PERSONAL: users.tolist()}) | others
        likely, _ = length_rule(test, baselines.length_votes(training))
        margins, rules = margins | likely, {LONGEST: baselines.longest(test)}
        verdict = verdict_of(margins, rules, labels, "users")
        steps.append(ColdStartStep(k, verdict, make_rows(margins, rules, labels), *gains(margins, labels)))
    return ColdStart(steps, len(parts), len(test), len(new) - len(parts), len(logs) - len(new), by)


def _parts(log: list[Comparison], by: SplitBy, seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """(training part, in the order of training; held-out part) of one user; both empty if the log cannot be split."""
    try:
        train, held_out = split(log, by, 0.5, seed)
    except PrmError:
        return [], []
    if by == "time":
        return train, held_out
    order = np.random.default_rng([seed, len(log)]).permutation(len(train))
    return [train[i] for i in order], held_out
