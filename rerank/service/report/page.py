"""The report of a service on the terminal, and as a page."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.text import Text

from prm.metrics import Estimate
from prm.report import show, write_page
from prm.report.drawing import svg
from prm.report.evaluation_page import Part, Shown
from prm.report.pictures import change_histogram, interval_picture, reliability_picture
from prm.report.terminal import laid_out
from rerank.service.report import text
from rerank.service.report.gain import Gain, Report

_FEW_TO_COUNT = 20  # people; a histogram of fewer shows nothing
_LOWER = "Grey: the interval includes 0."


def print_report(r: Report, title: str) -> None:
    """Print the verdict, the tables, and how to read them."""
    show(Text(title, style="bold"), text.headline(r), text.lead(r), *laid_out(text.sections(r)))
    show("", *text.READ_WITH_CARE)


def write_report(r: Report, store: str, command: str, path: Path) -> None:
    """Write the page, atomically; its folder is created if need be."""
    write_page(
        path,
        "prm.report",
        "evaluation.html",
        headline=text.headline(r),
        lead=text.lead(r),
        cards=text.cards(r),
        source=store,
        parts=list(_parts(r, command)),
    )


def _parts(r: Report, command: str) -> Iterator[Part]:
    pictures = _pictures(r)
    for section in text.sections(r):
        if section.absent:
            says = " ".join(section.notes)
            yield Part(section.title, f"{says[0].upper()}{says[1:].removesuffix('.')}.")
        else:
            yield Part(section.title, pictures=pictures.get(section.title, ()), tables=(section,))
    yield Part("How to read this", " ".join(text.READ_WITH_CARE))
    yield Part("How to reproduce", code=command)


def _pictures(r: Report) -> dict[str, Sequence[Shown]]:
    found: dict[str, Sequence[Shown]] = {
        text.BY_KNOWN: _gains(r.by_known, "by how many comparisons of the user were known"),
        text.OVER_TIME: _gains(r.over_time, "over time"),
    }
    if r.calibration:
        note = "On the dotted line, predictions are right; below it, they are too sure. Binomial 95% intervals."
        picture = svg(reliability_picture(r.calibration))
        found[text.CALIBRATION] = [Shown(picture, "Predicted and observed probabilities", note)]
    if len(r.people.people) > _FEW_TO_COUNT:
        found[text.LOSERS] = [Shown(svg(change_histogram(r.people)), "Number of users by decrease in log loss")]
    return found


def _gains(parts: Sequence[Gain], how: str) -> Sequence[Shown]:
    points, nats = ([(g.name, getattr(g, unit)) for g in parts] for unit in ("points", "nats"))
    return [
        _intervals(nats, f"Decrease in log loss against the generic user, {how}", "nats"),
        _intervals(points, f"Gain in accuracy over the generic user, {how}", "points"),
    ]


def _intervals(rows: Sequence[tuple[str, Estimate]], says: str, unit: str) -> Shown:
    picture = interval_picture(rows, "nats" if unit == "nats" else "points")
    return Shown(svg(picture), says, f"{says}. {_LOWER}")
