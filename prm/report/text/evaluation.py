"""An evaluation as text: titled tables with notes."""

import math

from prm.data.comparison import Extent
from prm.errors import counted
from prm.evaluation.evaluate import GENERIC, IN_WORDS, LENGTH_SIGN, LONGEST, PERSONAL, SHUFFLED, UNIFORM, Evaluation
from prm.evaluation.groups import Groups
from prm.evaluation.overlap import in_words
from prm.io.formatting import NONE, estimated, figure, gain
from prm.metrics import MIN_COMPARISONS, Calibration, Estimate
from prm.report.section import Section

_SLICE_ROWS = (PERSONAL, GENERIC, UNIFORM)
_ROW_NOTES = {
    GENERIC: "the personal model without a user",
    UNIFORM: "one model for all users, with settings tuned as carefully",
    SHUFFLED: "the personal model with another user's parameters",
    LONGEST: "picks the response with more words",
    LENGTH_SIGN: "how often the user, and all users, chose the longer response in training",
}


def percent(e: Estimate | None) -> str:
    """An accuracy in percent, with its 95% interval if that is finite."""
    return estimated(e, scale=100.0)


def nats(e: Estimate | None) -> str:
    """A log loss in nats with its interval; a dash for rules without one."""
    return estimated(e, digits=3)


def with_error(value: float, error: float) -> str:
    """A mean of accuracies with its standard error, in percent."""
    return figure(100 * value) + (f" ± {figure(100 * error)}" if math.isfinite(value + error) else "")


def in_short(result: Evaluation) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of one table with the main figures."""
    header = ["", "accuracy %", "mean over users %", "log loss (nats)"]
    rows = [[r.name, percent(r.accuracy), figure(100 * r.macro_accuracy), nats(r.nll)] for r in result.rows]
    return header, rows


def sections(result: Evaluation) -> list[Section]:
    """Accuracy; log loss and calibration; results by group of users; results by metadata field."""
    parts = [_accuracy(result), _likelihood(result)]
    if result.groups is not None:
        parts.append(_groups(result.groups))
    for key in dict.fromkeys(s.key for s in result.slices):
        slices = [s for s in result.slices if s.key == key]
        names = [row.name for row in slices[0].rows if row.name in _SLICE_ROWS]
        gained = ("accuracy gain, points", "lower log loss (nats)") if slices[0].gain is not None else ()
        rows = [
            (
                s.value,
                str(s.users),
                str(s.comparisons),
                *(percent(row.accuracy) for row in s.rows if row.name in names),
                *((percent(s.gain), nats(s.gain_nll)) if gained else ()),
                *(calibration_error(row.calibration) for row in s.rows if row.name == PERSONAL and row.calibration),
            )
            for s in slices
        ]
        header = (key, "users", "comparisons", *names, *gained, "calibration error")
        parts.append(Section(f"accuracy % by {key}", header, tuple(rows)))
    return parts


def notes(result: Evaluation) -> list[str]:
    """The remarks that belong to the tables, one per line."""
    size = Extent(result.comparisons, result.prompts, result.users)
    lines = [
        f"evaluated on {size}, {result.unknown_users} of them unknown to the model; "
        f"{counted(result.ties, 'tie')} (in log losses only); 95% intervals by bootstrap over {IN_WORDS[result.drawn]}"
        + (", those of means over users by bootstrap over users" if result.drawn == "prompts" else "")
    ]
    if result.learnt_from is not None:
        lines.append(f"trained on {Extent(**result.learnt_from)}")
    lines += filter(None, [in_words(result.overlap, result.comparisons)])
    if result.gain is not None and result.gain_nll is not None:
        lines.append(
            f"gain over the tuned uniform model: {percent(result.gain)} points of accuracy (mean over users: "
            f"{percent(result.gain_macro)}), {_lower(result.gain_nll)}"
        )
    else:
        lines.append("no uniform model to compare with: train one (users.kind: uniform) and name it with --against")
    lines += _shuffled(result)
    lines.append(_parameters(result))
    if result.note:
        lines.append(result.note)
    return lines


def _shuffled(result: Evaluation) -> list[str]:
    """The note on shuffled users, unless the users' own parameters clearly predict better."""
    outcome, shuffled = result.verdict.shuffle, result.verdict.shuffled
    if shuffled is None or shuffled.nats is None or outcome in (None, "learnt"):
        return []
    lower = f"with their own: {_lower(shuffled.nats)}"
    if outcome == "unclear":
        return [
            f"users shuffled: users seem to be predicted better with their own parameters than with another user's, "
            f"but there are too few {IN_WORDS[result.drawn]} or comparisons to be sure ({lower})"
        ]
    how = "better than" if outcome == "worse" else "as well as"
    return [
        f"warning: another user's parameters predict users {how} their own ({lower}): nothing shows that the model "
        "learnt what individual users prefer"
    ]


def _lower(e: Estimate) -> str:
    return gain(e, "log loss", ("lower", "higher"), "nats", 3)


def _parameters(result: Evaluation) -> str:
    if result.parameters is None:
        return "trained parameters: unknown (an older run, in which they were not counted)"
    users, shared = result.parameters["users"], result.parameters["shared"]
    return f"trained parameters: {users:,} of the user model (N_u), {shared:,} shared by all users (N_l)"


def _accuracy(result: Evaluation) -> Section:
    heads = {"top": "known users", "generic": "unknown users"}
    kinds = [kind for kind in heads if getattr(result.rows[0], kind) is not None]
    header = ("", *(heads[kind] for kind in kinds), "mean over users", "worst users")
    rows = [
        (
            r.name,
            *(percent(getattr(r, kind)) for kind in kinds),
            with_error(r.macro_accuracy, r.macro_error),
            with_error(r.worst_tenth, math.nan),
        )
        for r in result.rows
    ]
    column_notes = {
        "top": "known users: comparisons by users the model was trained on (Accuracy-top of the paper)",
        "generic": "unknown users: comparisons by all other users (Accuracy-generic)",
    }
    columns = [
        *(column_notes[kind] for kind in kinds),
        "mean over users: of each user's accuracy, ± its standard error",
        f"worst users: mean over the tenth of users, of those with {MIN_COMPARISONS} or more comparisons, for whom "
        "this row's accuracy is lowest",
    ]
    named = [f"{row.name}: {_ROW_NOTES[row.name]}" for row in result.rows if row.name in _ROW_NOTES]
    return Section("accuracy %", header, tuple(rows), ("; ".join(columns), *(["; ".join(named)] if named else [])))


def _likelihood(result: Evaluation) -> Section:
    header = ("", "log loss (nats)", "Brier score", "calibration error")
    rows = [
        (r.name, nats(r.nll), nats(r.brier), calibration_error(r.calibration)) for r in result.rows if r.calibration
    ]
    note = (
        "calibration error: mean distance of the predicted from the observed probability of the picked response; in "
        "brackets, the error that chance alone gives if every probability is right"
    )
    return Section("log loss and calibration", header, tuple(rows), (note,))


def calibration_error(c: Calibration) -> str:
    """The error, and in brackets what chance gives if every probability is right."""
    return f"{figure(c.error, 3)} ({figure(c.by_chance, 3)})" if c.bins else NONE


def _groups(groups: Groups) -> Section:
    header = ("", groups.key, "users", "comparisons", "mean % ± SE", "gap, points")
    rows = []
    for i, name in enumerate(row.name for row in groups.groups[0].rows):
        for g in groups.groups:
            row = g.rows[i]
            cells = (g.value, str(g.people), str(g.comparisons), with_error(row.accuracy, row.error))
            rows.append((name if g.majority else "", *cells, percent(row.gap)))
    included = "users the model knows" if groups.known_only else "all users"
    notes = [
        "mean: of the accuracies of the group's users (Accuracy-average of the paper); gap: the largest group's mean "
        "minus this group's"
    ]
    if groups.without:
        notes.append(f"in no group, without {groups.key}: {counted(groups.without, 'user')}")
    return Section(f"mean accuracy by {groups.key}, {included}", header, tuple(rows), tuple(notes))
