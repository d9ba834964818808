"""What newcomers gain, as a terminal table."""

from typing import TYPE_CHECKING

from rich.text import Text

from prm.evaluation.rows import PERSONAL, UNIFORM
from prm.report.terminal import show, table
from prm.report.text.evaluation import calibration_error, nats, percent

if TYPE_CHECKING:  # it brings torch in, and no report needs that
    from prm.evaluation.cold_start import ColdStart


def print_cold_start(result: "ColdStart", title: str) -> None:
    """A row for each number of judgements, and from which on it pays."""
    first = result.steps[0]
    names = [row.name for row in first.rows if row.name in (PERSONAL, UNIFORM)]
    gained = ["gain, points", "nats saved"] if first.gain is not None else []
    rows = [
        [
            str(step.after),
            *(percent(row.accuracy) for row in step.rows if row.name in names),
            *([percent(step.gain), nats(step.gain_nll)] if gained else []),
            *(calibration_error(row.calibration) for row in step.rows if row.name == PERSONAL and row.calibration),
        ]
        for step in result.steps
    ]
    header = ["after", *(f"{name} %" for name in names), *gained, "calibration error"]
    show(Text(title, style="bold"), table("newcomers after so many judgements", header, rows))
    show(
        f"{result.people} people, {result.comparisons} comparisons held out by {result.by}, the same in every row; 95% "
        f"intervals by bootstrap over people; left out: {result.left_out} with too few judgements, {result.known} whom "
        "the run knows"
    )
    if not gained:
        return
    show(f"after {result.steps[-1].after}: {result.steps[-1].verdict.says}")
    pays = result.pays_from
    show(f"it surely pays from {pays} judgements on" if pays is not None else "no row says that it surely pays")
