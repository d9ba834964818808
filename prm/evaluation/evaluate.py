"""Evaluation of a run on labelled comparisons, with the baselines and controls it must beat (`prm evaluate`)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from prm.data import baselines
from prm.data.arguments import require_list
from prm.data.comparison import Comparison, extent, naming_rows, placed, prompt_key
from prm.errors import PrmError, counted
from prm.evaluation.groups import Groups, Slice, groups_of, no_field, slices_of
from prm.evaluation.overlap import find_overlap
from prm.evaluation.rows import (
    GENERIC,
    LENGTH_SIGN,
    LONGEST,
    PERSONAL,
    SAVED_OVER,
    SHUFFLED,
    UNIFORM,
    Labels,
    MetricsRow,
    gains,
    make_rows,
)
from prm.evaluation.training_counts import counts_of, group_of
from prm.evaluation.verdict import Verdict, verdict_of
from prm.io.rows import Json
from prm.io.run_files import Controls, Overlap, Parameters, Size, read_controls, read_run
from prm.io.tables import plain
from prm.metrics import Array, Estimate, correct, macro, nll

if TYPE_CHECKING:  # reports read evaluations, and need no torch
    from prm.scoring.scorer import Scorer

Drawn = Literal["people", "prompts"]
IN_WORDS: dict[Drawn, str] = {"people": "users", "prompts": "prompts"}


@dataclass(frozen=True)
class Scored:
    """Margins [n] of the personal model, of the other models and of the rules, and what they are compared with.

    Args:
        prompts: of the comparisons, as keys.
        train_comparisons: number of training comparisons of each user; `None` if they were not counted.
    """

    models: Mapping[str, Array]
    rules: Mapping[str, Array]
    labels: Labels
    prompts: Sequence[str]
    train_comparisons: Mapping[str, int | None]


@dataclass(frozen=True)
class Evaluation:
    """A run on one set of comparisons.

    `verdict` compares it with the best baseline. `gain`, `gain_macro` and `gain_nll` are paired gains of the personal
    model over the uniform one: accuracy, mean of the users' accuracies, decrease in log loss (nats). Intervals are by
    bootstrap over `drawn`, so that they hold for other people or other prompts; those of macro figures are always over
    people. Accuracies leave tied labels out, log losses keep them. `parameters` holds the number of trained
    parameters: `users` (N_u) and `shared` (N_l, all others); `learnt_from` the number of `comparisons`, `prompts` and
    `people` in the training part; both are `None` if the run does not record them. `overlap` counts the comparisons
    that the run was trained on, `overlap_against` those that the run `against` was trained on; `None` if not known.
    `note` is a further remark for the reader. `scored` holds the margins behind it all; JSON does not.
    """

    comparisons: int
    prompts: int
    ties: int
    users: int
    unknown_users: int
    verdict: Verdict
    rows: list[MetricsRow]
    gain: Estimate | None
    gain_macro: Estimate | None
    gain_nll: Estimate | None
    per_user: dict[str, dict[str, float | None]]
    drawn: Drawn = "people"
    parameters: Parameters | None = None
    learnt_from: Size | None = None
    overlap: Overlap | None = None
    overlap_against: Overlap | None = None
    note: str = ""
    slices: list[Slice] = field(default_factory=list)
    groups: Groups | None = None
    scored: Scored | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Json]:
        """JSON-ready; an infinite end of an interval, and a value that cannot be computed, is null."""
        values = asdict(replace(self, scored=None))
        del values["scored"]
        return plain(values)

    def row(self, name: str) -> MetricsRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


def evaluate(
    scorer: "Scorer",
    comparisons: Sequence[Comparison],
    uniform: "Scorer | None" = None,
    length_votes: Controls | None = None,
    by: Sequence[str] = (),
    drawn: Drawn = "people",
    groups: str | None = None,
) -> Evaluation:
    """Score every comparison for its user, for the generic user and for another user, and evaluate the baselines.

    Args:
        uniform: the tuned uniform model to compare with.
        length_votes: of the training part; without them the per-user length rule is left out, and without their counts
            it gives no probability.
        by: metadata fields whose values get their own results; a number with many values is cut into quarters.
            `train_comparisons` is the user's number of training comparisons, cut at 0, 1, 10, 30 and 100.
        drawn: what the bootstrap draws: people, or prompts if the same few people compared them all.
        groups: metadata field that stays the same for each user: groups of users are compared by it.

    Raises `PrmError` if there is no comparison, none has a field of `by` or `groups`, or a user has two groups.
    """
    if not comparisons:
        raise PrmError("there is no comparison to evaluate on")
    fields = {key: _field(key, scorer, comparisons) for key in require_list("by", by)}
    size, users = extent(comparisons), [c.user_id for c in comparisons]
    prompts = [prompt_key(c.prompt) for c in comparisons]
    units = users if drawn == "people" else prompts
    p = np.array([c.p_chosen for c in comparisons])
    known = np.array([scorer.knows(u) for u in users], np.bool_)
    labels = Labels(p, np.array(users), np.array(units), known)
    models = _models(scorer, comparisons, uniform)
    rules = {LONGEST: baselines.longest(comparisons)}
    likely, by_sign = length_rule(comparisons, length_votes)
    models, rules = models | likely, rules | by_sign
    gain, gain_nll = gains(models, labels)
    scored = Scored(models, rules, labels, prompts, counts_of(scorer, set(users)))
    return Evaluation(
        comparisons=size.comparisons,
        prompts=size.prompts,
        ties=int((p == 0.5).sum()),
        users=size.people,
        unknown_users=len(set(labels.users[~known].tolist())),
        verdict=verdict_of(models, rules, labels, IN_WORDS[drawn]),
        rows=make_rows(models, rules, labels),
        gain=gain,
        gain_macro=macro(correct(models[PERSONAL], p) - correct(models[UNIFORM], p), labels.users) if gain else None,
        gain_nll=gain_nll,
        per_user=_per_user(models, rules, labels, scored.train_comparisons),
        drawn=drawn,
        slices=[one for key, values in fields.items() for one in slices_of(key, values, models, rules, labels)],
        groups=groups_of(groups, comparisons, {**models, **rules}, labels) if groups is not None else None,
        scored=scored,
    )


def length_rule(comparisons: Sequence[Comparison], votes: Controls | None) -> tuple[dict[str, Array], dict[str, Array]]:
    """The margins [n] of each user's taste for length: (as a model, as a rule without a probability).

    A rule if the votes have no counts, as in runs of earlier versions; neither without votes.
    """
    if votes is None:
        return {}, {}
    if "length_count" not in votes:
        return {}, {LENGTH_SIGN: baselines.length_sign(comparisons, votes["length_sign"])}
    return {LENGTH_SIGN: baselines.length_margins(comparisons, votes)}, {}


def _field(key: str, scorer: "Scorer", comparisons: Sequence[Comparison]) -> list[object]:
    """Each comparison's value of a metadata field. Without such a field, `train_comparisons` is one of `GROUPS`.

    Raises `PrmError` if all are `None`.
    """
    values = [c.metadata.get(key) for c in comparisons]
    if key == "train_comparisons" and not any(key in c.metadata for c in comparisons):
        counts = counts_of(scorer, {c.user_id for c in comparisons})
        groups = {u: None if n is None else group_of(n) for u, n in counts.items()}
        values = [groups[c.user_id] for c in comparisons]
    if all(value is None for value in values):
        raise no_field(key, comparisons)
    return values


def evaluate_run(
    run: str | Path,
    comparisons: Sequence[Comparison],
    against: str | Path | None = None,
    backbone: str | None = None,
    by: Sequence[str] = (),
    drawn: Drawn = "people",
    groups: str | None = None,
) -> Evaluation:
    """Evaluate a run folder with its length signs; the uniform model is the run's own unless `against` names one.

    Warns of comparisons that either run was trained on.
    """
    record, votes = read_run(Path(run), "config", "data"), read_controls(Path(run))
    scorer, uniform = open_scorers(run, against, backbone)
    overlap = find_overlap(run, scorer, comparisons)
    other = find_overlap(against, uniform, comparisons) if against is not None and uniform is not None else None
    result = evaluate(scorer, comparisons, uniform, votes, by, drawn, groups)
    first = record["config"].get("start_from")
    note = f"not counted as training data: the comparisons that {first} was trained on" if first else ""
    if first and against is None and uniform is not None:
        note += f"; the uniform model is that of {first} and was not trained on later comparisons"
    if adapted := sum(log["comparisons"] for log in record.get("adapted", ())):
        note = "; ".join(
            filter(None, [note, f"'prm adapt' has added {counted(adapted, 'comparison')} to those of training"])
        )
    learnt_from = record["data"].get("learnt_from")  # older runs do not record it
    return replace(
        result,
        parameters=record.get("parameters"),
        learnt_from=learnt_from,
        overlap=overlap,
        overlap_against=other,
        note=note,
    )


def open_scorers(
    run: str | Path, against: str | Path | None = None, backbone: str | None = None
) -> "tuple[Scorer, Scorer | None]":
    """(scorer of a run, scorer of its uniform model or of the run `against`; `None` if there is no uniform model).

    A backbone that both have is in memory once.
    """
    from prm.models.shared_backbone import BackboneLoader
    from prm.scoring.scorer import Scorer  # imports torch

    loader = BackboneLoader()
    scorer = Scorer.from_pretrained(run, backbone, cache=True, loader=loader)
    other = Path(against) if against is not None else Path(run) / "uniform"
    exists = against is not None or other.is_dir()
    return scorer, Scorer.from_pretrained(other, backbone, cache=True, loader=loader) if exists else None


def score_margins(
    scorer: "Scorer",
    comparisons: Sequence[Comparison],
    readers: Mapping[str, Sequence[str | None]],
    user_text: bool = True,
) -> dict[str, Array]:
    """Logits of P(chosen > rejected) [n] by name, each pair scored for the user that `readers` names for it.

    All are scored in one call, so that no text is encoded twice. `user_text` false leaves out the user texts.
    """
    times = len(readers)
    prompts = [c.prompt for c in comparisons] * times
    texts = [c.user_text if user_text else "" for c in comparisons] * times
    chosen, rejected = ([getattr(c, side) for c in comparisons] * times for side in ("chosen", "rejected"))
    users = [user for users_of_name in readers.values() for user in users_of_name]
    scored = [c if user_text else replace(c, user_text="") for c in comparisons]
    with naming_rows(placed(scored), scorer.reader.check_comparison):
        margins = scorer.margin_batch(prompts, chosen, rejected, users, texts).numpy().astype(np.float64)
    return dict(zip(readers, margins.reshape(times, len(comparisons)), strict=True))


def _models(scorer: "Scorer", comparisons: Sequence[Comparison], uniform: "Scorer | None") -> dict[str, Array]:
    """Margins [n] of the personal model and of the models it is compared with."""
    users = [c.user_id for c in comparisons]
    generic: list[str | None] = [None] * len(users)
    readers: dict[str, Sequence[str | None]] = {PERSONAL: users, GENERIC: generic}
    other = baselines.shuffled_users([u for u in users if scorer.knows(u)])
    if len(other) > 1:
        readers[SHUFFLED] = [other.get(u) for u in users]
    margins = score_margins(scorer, comparisons, readers)
    if uniform is not None:
        margins |= score_margins(uniform, comparisons, {UNIFORM: generic})
    return {name: margins[name] for name in (PERSONAL, GENERIC, UNIFORM, SHUFFLED) if name in margins}


def _per_user(
    models: Mapping[str, Array], rules: Mapping[str, Array], labels: Labels, counts: Mapping[str, int | None]
) -> dict[str, dict[str, float | None]]:
    """`comparisons`, `ties`, `train_comparisons`, accuracies and mean gains in log loss by user."""
    table = {}
    margins = {name: margin for name, margin in {**models, **rules}.items() if name != SHUFFLED}
    for user in dict.fromkeys(labels.users.tolist()):
        mine = labels.users == user
        p = labels.p[mine]
        entry: dict[str, float | None] = {
            "comparisons": len(p),
            "ties": int((p == 0.5).sum()),
            "train_comparisons": counts[user],
        }
        for name, margin in margins.items():
            right = correct(margin[mine], p)
            entry[name] = float(np.nanmean(right)) if not np.isnan(right).all() else float("nan")
        for name, key in SAVED_OVER.items():
            if name in models:
                entry[key] = float((nll(models[name][mine], p) - nll(models[PERSONAL][mine], p)).mean())
        table[user] = entry
    return table
