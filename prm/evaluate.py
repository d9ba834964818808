"""How good a run is on labelled comparisons, beside the controls that any gain must beat (`prm evaluate`)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prm import controls
from prm.checkpoint import read_run
from prm.comparison import Comparison, prompt_key
from prm.errors import PrmError
from prm.metrics import Array, Estimate, correct, estimate, macro, nll
from prm.scorer import Scorer

Drawn = Literal["people", "prompts"]

_FEW_VALUES = 8  # a number with more values than this is looked at in quarters


@dataclass(frozen=True)
class Row:
    """One way to predict the labels. `nll` is `None` for rules that give no probability."""

    name: str
    accuracy: Estimate
    macro_accuracy: float
    nll: Estimate | None


@dataclass(frozen=True)
class Slice:
    """The comparisons with one value of a metadata field, or one range of a number."""

    key: str
    value: str
    comparisons: int
    users: int
    rows: list[Row]


@dataclass(frozen=True)
class Evaluation:
    """A run on one set of comparisons.

    `gain` and `gain_nll` are paired differences of the personal model over the uniform one (accuracy; nats
    saved). Intervals are by bootstrap over `drawn`: they speak of other people, or of other prompts. Accuracies
    leave tied labels out; likelihoods keep them. `note` says what else a reader must know.
    """

    comparisons: int
    ties: int
    users: int
    unknown_users: int
    rows: list[Row]
    gain: Estimate | None
    gain_nll: Estimate | None
    per_user: dict[str, dict[str, float]]
    drawn: Drawn = "people"
    note: str = ""
    slices: list[Slice] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


def evaluate(
    scorer: Scorer,
    comparisons: Sequence[Comparison],
    uniform: Scorer | None = None,
    length_signs: dict[str, float] | None = None,
    by: Sequence[str] = (),
    drawn: Drawn = "people",
) -> Evaluation:
    """Score every comparison for its judge, for the unknown user and for somebody else, and run the controls.

    Args:
        uniform: the tuned uniform model to compare with.
        length_signs: from the training part; the per-user length rule is left out without them.
        by: metadata fields whose values are looked at one by one; numbers with many values in quarters.
        drawn: what the bootstrap draws: people, or prompts where the same few people judge them all.

    Raises `PrmError` where there is no comparison, or none has a field of `by`.
    """
    if not comparisons:
        raise PrmError("there is no comparison to evaluate on")
    users = [c.user_id for c in comparisons]
    p = np.array([c.p_chosen for c in comparisons])
    other = controls.shuffled_users([u for u in users if scorer.knows(u)])
    margins: dict[str, Array] = {
        "personal": score_margins(scorer, comparisons, users),
        "generic user": score_margins(scorer, comparisons, [None] * len(users)),
    }
    if uniform is not None:
        margins["uniform, tuned"] = score_margins(uniform, comparisons, [None] * len(users))
    if len(other) > 1:
        margins["users shuffled"] = score_margins(scorer, comparisons, [other.get(u) for u in users])
    rules = {"longest answer": controls.longest(comparisons)}
    if length_signs is not None:
        rules["length sign per user"] = controls.length_sign(comparisons, length_signs)
    units = users if drawn == "people" else [prompt_key(c.prompt) for c in comparisons]
    rows = _rows(margins, rules, p, users, units)
    gain = gain_nll = None
    if "uniform, tuned" in margins:
        ours, theirs = margins["personal"], margins["uniform, tuned"]
        gain = estimate(correct(ours, p) - correct(theirs, p), units)
        gain_nll = estimate(nll(theirs, p) - nll(ours, p), units)
    return Evaluation(
        comparisons=len(comparisons),
        ties=int((p == 0.5).sum()),
        users=len(set(users)),
        unknown_users=len({u for u in users if not scorer.knows(u)}),
        rows=rows,
        gain=gain,
        gain_nll=gain_nll,
        per_user=_per_user(margins, p, users),
        drawn=drawn,
        slices=[s for key in by for s in _slices(key, comparisons, margins, rules, p, units)],
    )


def evaluate_run(
    run: str | Path,
    comparisons: Sequence[Comparison],
    against: str | Path | None = None,
    backbone: str | None = None,
    by: Sequence[str] = (),
    drawn: Drawn = "people",
) -> Evaluation:
    """Evaluate a run folder with its own controls; the uniform model is the run's own unless `against` names one."""
    run = Path(run)
    scorer = Scorer.from_pretrained(run, backbone, cache=True)
    other = Path(against) if against is not None else run / "uniform"
    uniform = Scorer.from_pretrained(other, backbone, cache=True) if against is not None or other.is_dir() else None
    stored = run / "controls.json"
    signs = json.loads(stored.read_text(encoding="utf-8"))["length_sign"] if stored.is_file() else None
    result = evaluate(scorer, comparisons, uniform, signs, by, drawn)
    first = read_run(run)["config"].get("start_from")
    if first and against is None and uniform is not None:
        return replace(result, note=f"the uniform model is that of {first}: it has not seen what was learnt since")
    return result


def score_margins(scorer: Scorer, comparisons: Sequence[Comparison], users: Sequence[str | None]) -> Array:
    """r(chosen) - r(rejected) [n], each read by the user given for it."""
    prompts = [c.prompt for c in comparisons]
    texts = [c.user_text for c in comparisons]
    responses = [*(c.chosen for c in comparisons), *(c.rejected for c in comparisons)]
    rewards = scorer.score_batch(prompts * 2, responses, [*users, *users], texts * 2).numpy().astype(np.float64)
    return np.asarray(rewards[: len(prompts)] - rewards[len(prompts) :])


def _rows(
    margins: dict[str, Array], rules: dict[str, Array], p: Array, users: Sequence[str], units: Sequence[str]
) -> list[Row]:
    rows = [_row(name, m, p, users, units, likelihood=True) for name, m in margins.items()]
    return rows + [_row(name, m, p, users, units, likelihood=False) for name, m in rules.items()]


def _slices(
    key: str,
    comparisons: Sequence[Comparison],
    margins: dict[str, Array],
    rules: dict[str, Array],
    p: Array,
    units: Sequence[str],
) -> list[Slice]:
    """One slice per value of the field; comparisons without it are in none."""
    found = []
    for value, index in _groups(key, [c.metadata.get(key) for c in comparisons]):
        users = [comparisons[i].user_id for i in index]
        models, lengths = ({name: m[index] for name, m in table.items()} for table in (margins, rules))
        rows = _rows(models, lengths, p[index], users, [units[i] for i in index])
        found.append(Slice(key, value, len(index), len(set(users)), rows))
    return found


def _groups(key: str, values: Sequence[Any]) -> list[tuple[str, list[int]]]:
    """(value or range, positions) of each group, in order. Raises `PrmError` where no value is given."""
    given = [i for i, value in enumerate(values) if value is not None]
    if not given:
        raise PrmError(f"no comparison has the metadata field {key!r}")
    kinds = {values[i] for i in given if isinstance(values[i], int | float)}
    if len(kinds) > _FEW_VALUES and all(isinstance(values[i], int | float) for i in given):
        edges = np.quantile([values[i] for i in given], [0.25, 0.5, 0.75])
        quarter = {i: int(np.searchsorted(edges, values[i])) for i in given}
        groups = [[i for i in given if quarter[i] == q] for q in range(4)]
        span = [sorted(values[i] for i in group) for group in groups if group]
        return [(f"{s[0]:g} to {s[-1]:g}", g) for s, g in zip(span, filter(None, groups), strict=True)]
    plain = sorted({str(values[i]): values[i] for i in given}.items(), key=lambda item: _order(item[1]))
    names = [name for name, _ in plain]
    return [(name, [i for i in given if str(values[i]) == name]) for name in names]


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, before all else by name."""
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)


def _row(name: str, margin: Array, p: Array, users: Sequence[str], units: Sequence[str], likelihood: bool) -> Row:
    right = correct(margin, p)
    return Row(
        name,
        estimate(right, units),
        macro(right, users),
        estimate(nll(margin, p), units) if likelihood else None,
    )


def _per_user(margins: dict[str, Array], p: Array, users: Sequence[str]) -> dict[str, dict[str, float]]:
    names = np.asarray(users)
    table = {}
    for user in dict.fromkeys(users):
        mine = names == user
        entry = {"comparisons": float(mine.sum())}
        for name in ("personal", "uniform, tuned"):
            if name in margins:
                right = correct(margins[name][mine], p[mine])
                entry[name] = float(np.nanmean(right)) if not np.isnan(right).all() else float("nan")
        table[user] = entry
    return table
