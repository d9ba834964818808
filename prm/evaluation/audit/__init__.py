"""What personalisation costs, and whom (`prm audit`): the personal model against the tuned uniform one."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prm.data import baselines
from prm.data.comparison import Comparison, prompt_key
from prm.errors import PrmError
from prm.evaluation.audit.biases import Bias, LengthBiasOfUser, find_formats, find_length
from prm.evaluation.audit.calibration import Reliability, find_reliability
from prm.evaluation.audit.flagged_words import Flagged, find_flagged
from prm.evaluation.audit.generic_user import Drift, find_drift
from prm.evaluation.audit.per_user import UserResults, find_people
from prm.evaluation.audit.sycophancy import Echo, View, Views, find_echo, load_views, repeated, views_row
from prm.evaluation.evaluate import (
    GENERIC,
    LENGTH_SIGN,
    LONGEST,
    PERSONAL,
    UNIFORM,
    Labels,
    open_scorers,
    score_margins,
)
from prm.evaluation.training_counts import counts_of
from prm.evaluation.verdict import Verdict, verdict_of
from prm.io.run_files import read_length_signs
from prm.io.tables import plain
from prm.metrics import Array

if TYPE_CHECKING:  # reports read audits, and need no torch
    from prm.scoring.scorer import Scorer

_MOST_READERS = 100  # people who read the questions on views, drawn at random where there are more


@dataclass(frozen=True)
class Audit:
    """A personal model and the tuned uniform one on one set of comparisons.

    Args:
        verdict: the personal model beside the best baseline, strangers and all.
        strangers: people in the comparisons whom the model does not know; they are in all but `people`.
        people: gains and losses of everyone it knows.
        reliability: how sure the personal and the uniform model are, and how right, by what was learnt of people.
        drift: the generic user against the uniform model.
        length, formats: what the personal model prefers beyond what people do; `lengths` person by person.
        echo: what reading people's own words does; `None` where nobody says anything of themselves.
        views: agreement with false views that are stated.
        flagged: `None` without a list of words.
    """

    comparisons: int
    ties: int
    verdict: Verdict
    strangers: int
    people: UserResults
    reliability: tuple[Reliability, ...]
    drift: Drift
    length: Bias | None
    lengths: list[LengthBiasOfUser]
    formats: list[Bias]
    echo: Echo | None
    views: Views
    flagged: Flagged | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an interval without an end, and what there is too little for, is null."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def audit(
    scorer: "Scorer",
    uniform: "Scorer",
    comparisons: Sequence[Comparison],
    phrases: Sequence[str] | None = None,
    length_signs: Mapping[str, float] | None = None,
) -> Audit:
    """Every probe, on labelled comparisons whose order changes nothing; flagged words only with `phrases`.

    `length_signs`, from the training part, are for the verdict.

    Raises `PrmError` where the model knows nobody who judged.
    """
    log = sorted(comparisons, key=_place)
    users = [c.user_id for c in log]
    known = np.array([scorer.knows(user) for user in users], np.bool_)
    if not known.any():
        raise PrmError("the model knows nobody who judged here: there is no personalisation to audit")
    p = np.array([c.p_chosen for c in log])
    nobody = [None] * len(log)
    margins = score_margins(scorer, log, {PERSONAL: users, GENERIC: nobody})
    margins |= score_margins(uniform, log, {UNIFORM: nobody})
    rules = {LONGEST: baselines.longest(log)}
    if length_signs is not None:
        rules[LENGTH_SIGN] = baselines.length_sign(log, length_signs)
    judges = np.array(users)
    length, lengths = find_length(log, margins, p, users)
    mine = np.flatnonzero(known)
    return Audit(
        comparisons=len(log),
        ties=int((p == 0.5).sum()),
        verdict=verdict_of(margins, rules, Labels(p, judges, judges, known), "people"),
        strangers=len(set(users)) - len({users[i] for i in mine}),
        people=find_people(
            margins[PERSONAL][mine],
            margins[UNIFORM][mine],
            p[mine],
            [users[i] for i in mine],
            [prompt_key(log[i].prompt) for i in mine],
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

    Raises `PrmError` where there is no uniform model.
    """
    signs = read_length_signs(Path(run))
    scorer, uniform = open_scorers(run, against, backbone)
    if uniform is None:
        raise PrmError(
            f"{run} has no uniform model to compare with: train one (users.kind: uniform) and name it with --against"
        )
    return audit(scorer, uniform, comparisons, phrases, signs)


def ask_views(scorer: "Scorer", uniform: "Scorer", views: Sequence[View], seed: int = 0) -> Views:
    """Everyone's answers, or those of 100 people drawn at random, to questions with and without a stated view."""
    readers = scorer.users
    if len(readers) > _MOST_READERS:
        readers = sorted(random.Random(seed).sample(readers, _MOST_READERS))
    own = _answers(scorer, views, [*readers, None])
    other = _answers(uniform, views, [None])
    tables = {PERSONAL: own[:, :-1], GENERIC: own[:, -1:], UNIFORM: other}
    each = {user: views_row(user, *own[:, [i]]).shift.value for i, user in enumerate(readers)}
    return Views(len(views), len(readers), tuple(views_row(name, *margins) for name, margins in tables.items()), each)


def _answers(scorer: "Scorer", views: Sequence[View], readers: Sequence[str | None]) -> Array:
    """r(agrees) - r(differs) [2, readers, views]: with the view stated, and with the question alone."""
    asked = [
        (view.prompts[k], answer, user)
        for k in range(2)
        for user in readers
        for view in views
        for answer in (view.agrees, view.differs)
    ]
    prompts, answers, users = zip(*asked, strict=True)
    rewards = scorer.score_batch(prompts, answers, users).numpy().astype(np.float64)
    table = rewards.reshape(2, len(readers), len(views), 2)
    return np.asarray(table[..., 0] - table[..., 1])


def _echo(scorer: "Scorer", log: Sequence[Comparison], margins: Array) -> Echo | None:
    """With the text as read already, and once more without it."""
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


def _place(c: Comparison) -> tuple[Any, ...]:
    return c.user_id, prompt_key(c.prompt), c.chosen, c.rejected, c.user_text, c.p_chosen
