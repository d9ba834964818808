"""An evaluation in words: titled tables with notes."""

import math

from prm.data.comparison import Extent
from prm.evaluation.evaluate import GENERIC, PERSONAL, UNIFORM, Evaluation
from prm.evaluation.groups import Groups
from prm.io.formatting import NONE, estimated, figure
from prm.metrics import LEAST_JUDGED, Calibration, Estimate
from prm.report.text.profile import Section

_IN_SLICES = (PERSONAL, GENERIC, UNIFORM)


def percent(e: Estimate | None) -> str:
    """An accuracy with its 95% interval, where it has ends, in percent."""
    return estimated(e, scale=100.0)


def nats(e: Estimate | None) -> str:
    """A likelihood with its interval, in nats; a dash for rules without one."""
    return estimated(e, digits=3)


def with_error(value: float, error: float) -> str:
    """A mean of accuracies with its standard error, in percent."""
    return figure(100 * value) + (f" ± {figure(100 * error)}" if math.isfinite(value + error) else "")


def in_short(result: Evaluation) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of one table with the most telling figures."""
    header = ["", "accuracy %", "macro %", "nats"]
    rows = [[r.name, percent(r.accuracy), figure(100 * r.macro_accuracy), nats(r.nll)] for r in result.rows]
    return header, rows


def sections(result: Evaluation) -> list[Section]:
    """Accuracy; likelihood and calibration; people by group; comparisons by field."""
    found = [_accuracy(result), _likelihood(result)]
    if result.groups is not None:
        found.append(_groups(result.groups))
    for key in dict.fromkeys(s.key for s in result.slices):
        slices = [s for s in result.slices if s.key == key]
        names = [row.name for row in slices[0].rows if row.name in _IN_SLICES]
        gained = ("gain, points", "nats saved") if slices[0].gain is not None else ()
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
        header = (key, "people", "comparisons", *names, *gained, "calibration error")
        found.append(Section(f"accuracy % by {key}", header, tuple(rows)))
    return found


def notes(result: Evaluation) -> list[str]:
    """What must be said beside the tables."""
    size = Extent(result.comparisons, result.prompts, result.users)
    found = [
        f"evaluated on {size}, {result.unknown_users} of them unknown to the model; "
        f"{result.ties} ties (in likelihoods only); 95% intervals by bootstrap over {result.drawn}"
        + (", of macro figures over people" if result.drawn == "prompts" else "")
    ]
    if result.learnt_from is not None:
        found.append(f"learnt from {Extent(**result.learnt_from)}")
    if result.gain is not None and result.gain_nll is not None:
        found.append(
            f"gain over the tuned uniform model: {percent(result.gain)} points, {percent(result.gain_macro)} macro, "
            f"{nats(result.gain_nll)} nats saved"
        )
    else:
        found.append("no uniform model to compare with: train one (users.kind: uniform) and name it with --against")
    found += _shuffled(result)
    found.append(_parameters(result))
    if result.note:
        found.append(result.note)
    return found


def _shuffled(result: Evaluation) -> list[str]:
    """The note on shuffled users, unless the users' own parameters clearly predict better."""
    outcome, shuffled = result.verdict.shuffle, result.verdict.shuffled
    if shuffled is None or outcome in (None, "learnt"):
        return []
    lower = f"lower log loss with their own: {nats(shuffled.nats)} nats"
    if outcome == "unclear":
        return [
            f"users shuffled: users seem to be predicted better with their own parameters than with another user's, "
            f"but there are too few {result.drawn} or comparisons to be sure ({lower})"
        ]
    how = "better than" if outcome == "worse" else "as well as"
    return [
        f"warning: another user's parameters predict users {how} their own ({lower}): nothing shows that the model "
        "learnt what individual users prefer"
    ]


def _parameters(result: Evaluation) -> str:
    if result.parameters is None:
        return "trained parameters: unknown (the run is from before they were counted)"
    users, shared = result.parameters["users"], result.parameters["shared"]
    return f"trained parameters: {users:,} of the user model (N_u), {shared:,} of all else (N_l)"


def _accuracy(result: Evaluation) -> Section:
    kinds = [kind for kind in ("top", "generic") if getattr(result.rows[0], kind) is not None]
    header = ("", *(f"Accuracy-{kind} %" for kind in kinds), "macro % ± SE", "worst tenth %")
    rows = [
        (
            r.name,
            *(percent(getattr(r, kind)) for kind in kinds),
            with_error(r.macro_accuracy, r.macro_error),
            with_error(r.worst_tenth, math.nan),
        )
        for r in result.rows
    ]
    whose = {"top": "comparisons by people the model knows", "generic": "comparisons by people it does not know"}
    note = "".join(f"Accuracy-{kind}: {whose[kind]}; " for kind in kinds)
    note += f"macro: mean over people; worst tenth: of people with {LEAST_JUDGED} or more judgements, each row's own"
    return Section("accuracy", header, tuple(rows), (note,))


def _likelihood(result: Evaluation) -> Section:
    header = ("", "nats", "Brier", "calibration error")
    rows = [
        (r.name, nats(r.nll), nats(r.brier), calibration_error(r.calibration)) for r in result.rows if r.calibration
    ]
    note = (
        "calibration error of P(picked answer); in brackets, what chance alone gives where every probability is right"
    )
    return Section("likelihood and calibration", header, tuple(rows), (note,))


def calibration_error(c: Calibration) -> str:
    """The error, and in brackets what chance gives where every probability is right."""
    return f"{figure(c.error, 3)} ({figure(c.by_chance, 3)})" if c.bins else NONE


def _groups(found: Groups) -> Section:
    header = ("", found.key, "people", "comparisons", "average % ± SE", "gap, points")
    rows = []
    for i, name in enumerate(row.name for row in found.groups[0].rows):
        for g in found.groups:
            row = g.rows[i]
            cells = (g.value, str(g.people), str(g.comparisons), with_error(row.accuracy, row.error))
            rows.append((name if g.majority else "", *cells, percent(row.gap)))
    who = "people the model knows" if found.known_only else "everyone"
    notes = ["average: mean over the group's people; gap: the largest group's less this one's"]
    if found.without:
        notes.append(f"{found.without} people without {found.key} are in no group")
    return Section(f"Accuracy-average by {found.key}, {who}", header, tuple(rows), tuple(notes))
