"""Audit of personalisation (`prm audit`): which users lose by it, and which biases it adds to the uniform model."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prm.data import baselines
from prm.data.comparison import Comparison, prompt_key
from prm.errors import PrmError
from prm.evaluation.audit.biases import Bias, LengthBiasOfUser, find_formats, find_length
from prm.evaluation.audit.calibration import Reliability, find_reliability
from prm.evaluation.audit.flagged_words import Flagged, find_flagged
from prm.evaluation.audit.generic_user import Drift, find_drift
from prm.evaluation.audit.per_user import UserResults, user_results
from prm.evaluation.audit.sycophancy import Echo, View, Views, find_echo, load_views, repeated, views_row
from prm.evaluation.evaluate import (
    GENERIC,
    LONGEST,
    PERSONAL,
    UNIFORM,
    Labels,
    length_rule,
    open_scorers,
    score_margins,
)
from prm.evaluation.overlap import find_overlap
from prm.evaluation.training_counts import counts_of
from prm.evaluation.verdict import Verdict, verdict_of
from prm.io.rows import Json
from prm.io.run_files import Controls, Overlap, read_controls
from prm.io.tables import plain
from prm.metrics import Array

if TYPE_CHECKING:  # reports read audits, and need no torch
    from prm.scoring.scorer import Scorer

_MAX_READERS = 100  # users whose model answers the questions on views; a random sample if there are more


@dataclass(frozen=True)
class Audit:
    """A personal model and the tuned uniform one on one set of comparisons.

    Args:
        verdict: the personal model against the best baseline, on all users.
        unknown_users: number of users that the model does not know; they are part of everything but `people`.
        people: gains and losses of every user it knows.
        reliability: calibration of the personal and the uniform model, by number of training comparisons.
        drift: the generic user against the uniform model.
        length, formats: preference for longer or formatted responses beyond the users' own; `lengths` for each user.
        echo: the effect of the user texts; `None` if there are none.
        views: agreement with false views that the prompt states.
        flagged: preference for flagged words; `None` without a list of words.
        overlap: comparisons that the run was trained on; `None` if not known.
    """

    comparisons: int
    ties: int
    verdict: Verdict
    unknown_users: int
    people: UserResults
    reliability: tuple[Reliability, ...]
    drift: Drift
    length: Bias | None
    lengths: list[LengthBiasOfUser]
    formats: list[Bias]
    echo: Echo | None
    views: Views
    flagged: Flagged | None
    overlap: Overlap | None = None

    def to_dict(self) -> dict[str, Json]:
        """JSON-ready; an infinite end of an interval, and a value that cannot be computed, is null."""
        return plain(asdict(self))


def audit(
    scorer: "Scorer",
    uniform: "Scorer",
    comparisons: Sequence[Comparison],
    phrases: Sequence[str] | None = None,
    length_votes: Controls | None = None,
) -> Audit:
    """Run every probe on labelled comparisons, in any order; flagged words only with `phrases`.

    `length_votes`, of the training part, are for the verdict.

    Raises `PrmError` if the model knows none of the users.
    """
    log = sorted(comparisons, key=_sort_key)
    users = [c.user_id for c in log]
    known = np.array([scorer.knows(user) for user in users], np.bool_)
    if not known.any():
        raise PrmError("the model knows none of these users: there is no personalisation to audit")
    p = np.array([c.p_chosen for c in log])
    generic = [None] * len(log)
    margins = score_margins(scorer, log, {PERSONAL: users, GENERIC: generic})
    margins |= score_margins(uniform, log, {UNIFORM: generic})
    likely, by_sign = length_rule(log, length_votes)
    rules = {LONGEST: baselines.longest(log)} | by_sign
    user_ids = np.array(users)
    length, lengths = find_length(log, margins, p, users)
    known_rows = np.flatnonzero(known)
    return Audit(
        comparisons=len(log),
        ties=int((p == 0.5).sum()),
        verdict=verdict_of(margins | likely, rules, Labels(p, user_ids, user_ids, known), "users"),
        unknown_users=len(set(users)) - len({users[i] for i in known_rows}),
        people=user_results(
            margins[PERSONAL][known_rows],
            margins[UNIFORM][known_rows],
            p[known_rows],
            [users[i] for i in known_rows],
            [prompt_key(log[i].prompt) for i in known_rows],
        ),
        reliability=find_reliability(
            {name: margins[name] for name in (PERSONAL, UNIFORM)}, p, users, counts_of(scorer, set(users))
        ),
        drift=find_drift(margins[GENERIC], margins[UNIFORM], p, users),
        length=length,
        lengths=lengths,
        formats=find_formats(log, margins, p, users),
        echo=_echo(scorer, log, margins[PERSONAL]),
        views=ask_views(scorer, uniform, load_views()),
        flagged=find_flagged(log, margins, p, users, phrases) if phrases is not None else None,
    )


def audit_run(
    run: str | Path,
    comparisons: Sequence[Comparison],
    phrases: Sequence[str] | None = None,
    against: str | Path | None = None,
    backbone: str | None = None,
) -> Audit:
    """Audit a run folder against its own tuned uniform model, or against the run `against`.

    Warns of comparisons that either run was trained on. Raises `PrmError` if there is no uniform model.
    """
    votes = read_controls(Path(run))
    scorer, uniform = open_scorers(run, against, backbone)
    if uniform is None:
        raise PrmError(
            f"{run} has no uniform model to compare with: train one (users.kind: uniform) and name it with --against"
        )
    overlap = find_overlap(run, scorer, comparisons)
    if against is not None:
        find_overlap(against, uniform, comparisons)
    return replace(audit(scorer, uniform, comparisons, phrases, votes), overlap=overlap)


def ask_views(scorer: "Scorer", uniform: "Scorer", views: Sequence[View], seed: int = 0) -> Views:
    """Answers to questions with and without a stated view, for every user or for 100 users drawn at random."""
    readers = scorer.users
    if len(readers) > _MAX_READERS:
        readers = sorted(random.Random(seed).sample(readers, _MAX_READERS))
    personal = _answers(scorer, views, [*readers, None])
    uniform_margins = _answers(uniform, views, [None])
    tables = {PERSONAL: personal[:, :-1], GENERIC: personal[:, -1:], UNIFORM: uniform_margins}
    each = {user: views_row(user, *personal[:, [i]]).shift.value for i, user in enumerate(readers)}
    return Views(len(views), len(readers), tuple(views_row(name, *margins) for name, margins in tables.items()), each)


def _answers(scorer: "Scorer", views: Sequence[View], readers: Sequence[str | None]) -> Array:
    """r(agrees) - r(differs) [2, readers, views]: with the view stated, and with the question alone."""
    inputs = [
        (view.prompts[k], answer, user)
        for k in range(2)
        for user in readers
        for view in views
        for answer in (view.agrees, view.differs)
    ]
    prompts, responses, users = zip(*inputs, strict=True)
    rewards = scorer.score_batch(prompts, responses, users).numpy().astype(np.float64)
    table = rewards.reshape(2, len(readers), len(views), 2)
    return np.asarray(table[..., 0] - table[..., 1])


def _echo(scorer: "Scorer", log: Sequence[Comparison], margins: Array) -> Echo | None:
    """Compare `margins`, scored with the user texts, with margins without them."""
    index = [i for i, c in enumerate(log) if c.user_text]
    if not index:
        return None
    with_text = [log[i] for i in index]
    users = [c.user_id for c in with_text]
    without = score_margins(scorer, with_text, {PERSONAL: users}, user_text=False)[PERSONAL]
    repeats = [
        np.array([repeated(c.user_text, getattr(c, side)) for c in with_text]) for side in ("chosen", "rejected")
    ]
    return find_echo(
        margins[index], without, (repeats[0], repeats[1]), np.array([c.p_chosen for c in with_text]), users
    )


def _sort_key(c: Comparison) -> tuple[str, str, str, str, str, float]:
    return c.user_id, prompt_key(c.prompt), c.chosen, c.rejected, c.user_text, c.p_chosen
