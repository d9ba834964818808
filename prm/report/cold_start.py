"""The gain for new users, as a terminal table."""

from typing import TYPE_CHECKING

from rich.text import Text

from prm.evaluation.rows import PERSONAL, UNIFORM
from prm.report.terminal import show, table
from prm.report.text.evaluation import calibration_error, nats, percent

if TYPE_CHECKING:  # it imports torch, which reports do without
    from prm.evaluation.cold_start import ColdStart


def print_cold_start(result: "ColdStart", title: str) -> None:
    """Print a row for each number of training comparisons, and the number from which personalisation pays."""
    first = result.steps[0]
    names = [row.name for row in first.rows if row.name in (PERSONAL, UNIFORM)]
    gained = ["accuracy gain, points", "lower log loss (nats)"] if first.gain is not None else []
    rows = [
        [
            str(step.after),
            *(percent(row.accuracy) for row in step.rows if row.name in names),
            *([percent(step.gain), nats(step.gain_nll)] if gained else []),
            *(calibration_error(row.calibration) for row in step.rows if row.name == PERSONAL and row.calibration),
        ]
        for step in result.steps
    ]
    header = ["trained on", *(f"{name} %" for name in names), *gained, "calibration error"]
    show(Text(title, style="bold"), table("new users, by number of training comparisons of each", header, rows))
    show(
        f"{result.people} users, {result.comparisons} comparisons held out by {result.by}, the same in every row; 95% "
        f"intervals by bootstrap over users; left out: {result.left_out} users with too few comparisons, "
        f"{result.known} that the run knows; calibration error: in brackets, the error that chance alone gives"
    )
    if not gained:
        return
    show(f"after {result.steps[-1].after} comparisons: {result.steps[-1].verdict.says}")
    pays = result.pays_from
    show(
        f"clearly better than every baseline from {pays} training comparisons on"
        if pays is not None
        else "not clearly better than every baseline in the last row"
    )
