"""How good a run is on labelled comparisons, beside the controls that any gain must beat (`prm evaluate`)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from prm.data import baselines
from prm.data.comparison import Comparison, extent, naming_rows, placed, prompt_key, require_list
from prm.errors import PrmError
from prm.evaluation.groups import Groups, Slice, groups_of, slices_of
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
from prm.io.run_files import read_length_signs, read_run
from prm.io.tables import plain
from prm.metrics import Array, Estimate, correct, macro, nll

if TYPE_CHECKING:  # reports read evaluations, and need no torch
    from prm.scoring.scorer import Scorer

Drawn = Literal["people", "prompts"]


@dataclass(frozen=True)
class Evaluation:
    """A run on one set of comparisons.

    `verdict` is what it comes to, beside the best baseline. `gain`, `gain_macro` and `gain_nll` are paired differences
    of the personal model over the uniform one (accuracy; each person's accuracy; nats saved). Intervals are by
    bootstrap over `drawn`: they speak of other people, or of other prompts; those of macro figures are always over
    people. Accuracies leave tied labels out; likelihoods keep them. `parameters` holds how many numbers were trained:
    `users` (N_u) and `shared` (N_l, all else); `learnt_from` how many `comparisons`, `prompts` and `people` the
    training part held; both are `None` where the run does not tell.
    `note` says what else a reader must know.
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
    per_user: dict[str, dict[str, Any]]
    drawn: Drawn = "people"
    parameters: dict[str, int] | None = None
    learnt_from: dict[str, int] | None = None
    note: str = ""
    slices: list[Slice] = field(default_factory=list)
    groups: Groups | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an interval without an end, and what there is too little for, is null."""
        found: dict[str, Any] = plain(asdict(self))
        return found

    def row(self, name: str) -> MetricsRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


def evaluate(
    scorer: "Scorer",
    comparisons: Sequence[Comparison],
    uniform: "Scorer | None" = None,
    length_signs: dict[str, float] | None = None,
    by: Sequence[str] = (),
    drawn: Drawn = "people",
    groups: str | None = None,
) -> Evaluation:
    """Score every comparison for its judge, for the unknown user and for somebody else, and run the controls.

    Args:
        uniform: the tuned uniform model to compare with.
        length_signs: from the training part; the per-user length rule is left out without them.
        by: metadata fields whose values are looked at one by one; numbers with many values in quarters. `judgements`
            is how many each person's numbers rest on: from 0, 1, 10, 30 and 100 on.
        drawn: what the bootstrap draws: people, or prompts where the same few people judge them all.
        groups: metadata field that stays the same for each person: people are compared by it.

    Raises `PrmError` where there is no comparison, none has a field of `by` or `groups`, or a person has two groups.
    """
    if not comparisons:
        raise PrmError("there is no comparison to evaluate on")
    by = require_list("by", by)
    size, users = extent(comparisons), [c.user_id for c in comparisons]
    units = users if drawn == "people" else [prompt_key(c.prompt) for c in comparisons]
    p = np.array([c.p_chosen for c in comparisons])
    known = np.array([scorer.knows(u) for u in users], np.bool_)
    labels = Labels(p, np.array(users), np.array(units), known)
    models = _models(scorer, comparisons, uniform)
    rules = {LONGEST: baselines.longest(comparisons)}
    if length_signs is not None:
        rules[LENGTH_SIGN] = baselines.length_sign(comparisons, length_signs)
    gain, gain_nll = gains(models, labels)
    return Evaluation(
        comparisons=size.comparisons,
        prompts=size.prompts,
        ties=int((p == 0.5).sum()),
        users=size.people,
        unknown_users=len(set(labels.users[~known].tolist())),
        verdict=verdict_of(models, rules, labels, drawn),
        rows=make_rows(models, rules, labels),
        gain=gain,
        gain_macro=macro(correct(models[PERSONAL], p) - correct(models[UNIFORM], p), labels.users) if gain else None,
        gain_nll=gain_nll,
        per_user=_per_user(models, rules, labels, counts_of(scorer, set(users))),
        drawn=drawn,
        slices=[s for key in by for s in slices_of(key, _field(key, scorer, comparisons), models, rules, labels)],
        groups=groups_of(groups, comparisons, {**models, **rules}, labels) if groups is not None else None,
    )


def _field(key: str, scorer: "Scorer", comparisons: Sequence[Comparison]) -> list[Any]:
    """Each comparison's value of a metadata field; of `judgements`, unless the log has it, what the judge rests on."""
    if key != "judgements" or any(key in c.metadata for c in comparisons):
        return [c.metadata.get(key) for c in comparisons]
    counts = counts_of(scorer, {c.user_id for c in comparisons})
    least = {u: None if n is None else group_of(n) for u, n in counts.items()}
    return [least[c.user_id] for c in comparisons]


def evaluate_run(
    run: str | Path,
    comparisons: Sequence[Comparison],
    against: str | Path | None = None,
    backbone: str | None = None,
    by: Sequence[str] = (),
    drawn: Drawn = "people",
    groups: str | None = None,
) -> Evaluation:
    """Evaluate a run folder with its own controls; the uniform model is the run's own unless `against` names one."""
    made, signs = read_run(Path(run), "config", "data"), read_length_signs(Path(run))
    scorer, uniform = open_scorers(run, against, backbone)
    result = evaluate(scorer, comparisons, uniform, signs, by, drawn, groups)
    first = made["config"].get("start_from")
    note = f"what {first} had learnt from comes on top" if first else ""
    if first and against is None and uniform is not None:
        note += "; the uniform model is still its, and has not seen what was learnt since"
    if taken_in := sum(log["comparisons"] for log in made.get("adapted", ())):
        note = "; ".join(filter(None, [note, f"{taken_in} comparisons that 'prm adapt' took in come on top"]))
    learnt_from = made["data"].get("learnt_from")  # older runs do not say
    return replace(result, parameters=made.get("parameters"), learnt_from=learnt_from, note=note)


def open_scorers(
    run: str | Path, against: str | Path | None = None, backbone: str | None = None
) -> "tuple[Scorer, Scorer | None]":
    """(a run's scorer, that of the tuned uniform model): the run's own, or that of the folder `against`, if any."""
    from prm.scoring.scorer import Scorer  # brings torch in

    scorer = Scorer.from_pretrained(run, backbone, cache=True)
    other = Path(against) if against is not None else Path(run) / "uniform"
    there = against is not None or other.is_dir()
    return scorer, Scorer.from_pretrained(other, backbone, cache=True) if there else None


def score_margins(
    scorer: "Scorer",
    comparisons: Sequence[Comparison],
    readers: Mapping[str, Sequence[str | None]],
    user_text: bool = True,
) -> dict[str, Array]:
    """Logits of P(chosen > rejected) [n] by name, each pair read by the user that `readers` gives for it.

    All of them are asked for in one call, so that nothing is read twice. `user_text` false leaves out what people
    say of themselves.
    """
    times = len(readers)
    prompts = [c.prompt for c in comparisons] * times
    texts = [c.user_text if user_text else "" for c in comparisons] * times
    chosen, rejected = ([getattr(c, side) for c in comparisons] * times for side in ("chosen", "rejected"))
    users = [user for readers_of in readers.values() for user in readers_of]
    read = [c if user_text else replace(c, user_text="") for c in comparisons]
    with naming_rows(placed(read), scorer.check_comparison):
        margins = scorer.margin_batch(prompts, chosen, rejected, users, texts).numpy().astype(np.float64)
    return dict(zip(readers, margins.reshape(times, len(comparisons)), strict=True))


def _models(scorer: "Scorer", comparisons: Sequence[Comparison], uniform: "Scorer | None") -> dict[str, Array]:
    """Margins [n] of the personal model and of the models that it is compared with."""
    users = [c.user_id for c in comparisons]
    nobody: list[str | None] = [None] * len(users)
    readers: dict[str, Sequence[str | None]] = {PERSONAL: users, GENERIC: nobody}
    other = baselines.shuffled_users([u for u in users if scorer.knows(u)])
    if len(other) > 1:
        readers[SHUFFLED] = [other.get(u) for u in users]
    found = score_margins(scorer, comparisons, readers)
    if uniform is not None:
        found |= score_margins(uniform, comparisons, {UNIFORM: nobody})
    return {name: found[name] for name in (PERSONAL, GENERIC, UNIFORM, SHUFFLED) if name in found}


def _per_user(
    models: Mapping[str, Array], rules: Mapping[str, Array], labels: Labels, counts: Mapping[str, int | None]
) -> dict[str, dict[str, Any]]:
    """Of each person: `comparisons`, `ties` among them, `judgements` learnt from, accuracies, and mean nats saved."""
    table = {}
    margins = {name: margin for name, margin in {**models, **rules}.items() if name != SHUFFLED}
    for user in dict.fromkeys(labels.users.tolist()):
        mine = labels.users == user
        p = labels.p[mine]
        entry: dict[str, Any] = {
            "comparisons": len(p),
            "ties": int((p == 0.5).sum()),
            "judgements": counts[user],
        }
        for name, margin in margins.items():
            right = correct(margin[mine], p)
            entry[name] = float(np.nanmean(right)) if not np.isnan(right).all() else float("nan")
        for name, key in SAVED_OVER.items():
            if name in models:
                entry[key] = float((nll(models[name][mine], p) - nll(models[PERSONAL][mine], p)).mean())
        table[user] = entry
    return table
