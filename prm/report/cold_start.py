"""The gain for new users, as a terminal table and a page."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.text import Text

from prm.evaluation.new_users import StoredColdStart, curve_of
from prm.report.terminal import show, table
from prm.report.text import cold_start as text

if TYPE_CHECKING:  # it imports torch, which reports do without
    from prm.evaluation.cold_start import ColdStart


def print_cold_start(result: "ColdStart", title: str) -> None:
    """Print a row for each number of training comparisons, and the number from which personalisation pays."""
    section = text.section(result)
    show(Text(title, style="bold"), table(section.title, section.header, section.rows), *section.notes)


def write_cold_start(result: "ColdStart", run: str, data: str, command: str, path: Path) -> None:
    """Write the page, atomically; its folder is created if need be. `data` names the log of the new users."""
    from prm.report.evaluation_page import Part, new_users_part  # imports matplotlib, which terminals do without
    from prm.report.page import write_page

    curve = curve_of(cast(StoredColdStart, result.to_dict()), data)
    how = Part("How to reproduce", code=command)
    parts = [new_users_part(curve, (text.section(result),)), how]
    content = {"headline": text.headline(curve), "lead": text.in_words(curve), "cards": text.cards(curve)}
    source = f"{run} on new users of {data}"
    write_page(path, "prm.report", "evaluation.html", **content, source=source, parts=parts)
