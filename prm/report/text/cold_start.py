"""New users as text: a table of every number of training comparisons, with notes."""

from typing import TYPE_CHECKING

from prm.errors import counted
from prm.evaluation.new_users import NewUsers
from prm.evaluation.rows import PERSONAL, UNIFORM
from prm.io.formatting import figure
from prm.report.section import Section
from prm.report.text.evaluation import calibration_error, nats, percent
from prm.report.text.units import Card, between, card, lower_by, lower_card

if TYPE_CHECKING:  # it imports torch, which reports do without
    from prm.evaluation.cold_start import ColdStart


def section(result: "ColdStart") -> Section:
    """A row for each number of training comparisons; the last notes say from which number on personalisation pays."""
    first = result.steps[0]
    names = [row.name for row in first.rows if row.name in (PERSONAL, UNIFORM)]
    gained = ["accuracy gain, points", "lower log loss (nats)"] if first.gain is not None else []
    rows = tuple(
        (
            str(step.after),
            *(percent(row.accuracy) for row in step.rows if row.name in names),
            *([percent(step.gain), nats(step.gain_nll)] if gained else []),
            *(calibration_error(row.calibration) for row in step.rows if row.name == PERSONAL and row.calibration),
        )
        for step in result.steps
    )
    header = ("trained on", *(f"{name} %" for name in names), *gained, "calibration error")
    notes = [
        f"{counted(result.people, 'user')}, {counted(result.comparisons, 'comparison')} held out by {result.by}, the "
        f"same in every row; 95% intervals by bootstrap over users; left out: {counted(result.left_out, 'user')} with "
        "too few comparisons, "
        f"{result.known} that the run knows; calibration error: in brackets, the error that chance alone gives"
    ]
    if gained:
        notes += [
            f"after {counted(result.steps[-1].after, 'comparison')}: {result.steps[-1].verdict.says}",
            _pays(result.pays_from),
        ]
    return Section("new users, by number of training comparisons of each", header, rows, tuple(notes))


def _pays(first: int | None) -> str:
    if first is None:
        return "not clearly better than every baseline in the last row"
    return f"clearly better than every baseline from {counted(first, 'training comparison')} on"


def in_words(curve: NewUsers) -> str:
    """What a curve shows, in sentences with units and intervals."""
    last = curve.steps[-1]
    says = (
        f"{counted(curve.people, 'user')} of {curve.data} whom the run does not know, on "
        f"{counted(curve.comparisons, 'comparison')} held out by {curve.by}. Fitted to "
        f"{counted(last.after, 'comparison')} of each, the model predicts "
        f"{figure(100 * last.accuracy.value)}% ({between(last.accuracy)})"
    )
    if last.gain is not None and last.gain_nll is not None:
        gain, saved = last.gain, last.gain_nll
        says += (
            f", {figure(100 * gain.value, sign='+')} percentage points over the tuned uniform model "
            f"({between(gain, unit='', sign='+')}); its log loss is {lower_by(saved)}"
        )
    if last.gain is None:
        return f"{says}."
    pays = (
        "not yet clearly" if curve.pays_from is None else f"from {counted(curve.pays_from, 'comparison')} on, clearly"
    )
    return f"{says}. It is {pays} better than every baseline."


def headline(curve: NewUsers) -> str:
    """From how many comparisons on personalisation pays for a new user."""
    if curve.steps[-1].gain is None:
        return f"New users after up to {counted(curve.steps[-1].after, 'comparison')}"
    if curve.pays_from is None:
        after = counted(curve.steps[-1].after, "comparison")
        return f"After {after}, personal rewards do not clearly pay for new users yet"
    return f"For new users, personal rewards pay from {counted(curve.pays_from, 'comparison')} on"


def cards(curve: NewUsers) -> list[Card]:
    """The main figures, each with its interval in words."""
    last, after = curve.steps[-1], f"after {counted(curve.steps[-1].after, 'comparison')}"
    found = [card(last.accuracy, f"predicted {after}")]
    if last.gain is not None and last.gain_nll is not None:
        found.append(card(last.gain, f"percentage points over the tuned uniform model, {after}", unit="", sign="+"))
        found.append(lower_card(last.gain_nll, f", {after}"))
    return [*found, (f"{curve.people:,}", "new users", ""), (f"{curve.comparisons:,}", "held-out comparisons", "")]
