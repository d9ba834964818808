"""The report of a description of a feedback log: tables, pictures and a page."""

from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure
from rich.text import Text

from prm.data.profile import Description
from prm.data.profile.counts import UserCounts
from prm.data.profile.heterogeneity import LengthTaste
from prm.io.disk import make_folder
from prm.io.tables import write_json
from prm.report.drawing import MUTED, PERSONAL, UNIFORM, WIDTH, drawn, save_picture, whole_numbers
from prm.report.page import write_page
from prm.report.terminal import laid_out, show
from prm.report.text.profile import headline, sections
from prm.report.text.units import card


def print_profile(d: Description, title: str) -> None:
    """Print the description as tables, with the verdict last."""
    show(Text(title, style="bold"), *laid_out(sections(d)))
    show("", Text(headline(d), style="bold"), *d.verdict.reasons)


def write_profile(d: Description, folder: Path, title: str) -> None:
    """Write `describe.json` and the page `index.html` with its pictures; create the folder if need be."""
    make_folder(folder)
    write_json(folder / "describe.json", {"data": title} | d.to_dict())
    pictures = {"people": save_picture(people_picture(d.people), folder / "people.png"), "lengths": Markup()}
    if d.differences.length_taste is not None:
        figure = length_picture(d.differences.length_taste)
        pictures["lengths"] = save_picture(figure, folder / "lengths.png")
    agreement = d.differences.agreement
    cards: list[tuple[str, ...]] = [
        (f"{d.people.people:,}", "users"),
        (f"{d.people.comparisons:,}", "comparisons"),
        (f"{d.people.enough.people:,}", f"of them with {d.people.enough.least} or more comparisons"),
    ]
    if d.longer_won is not None:
        cards.append(card(d.longer_won.share, "longer response chosen"))
    if agreement is not None:
        cards.append(card(agreement.agree, "two users agree on a pair"))
    content = {"headline": headline(d), "reasons": d.verdict.reasons, "cards": cards, "source": title}
    warnings = [note for section in sections(d) for note in section.notes if note.startswith("warning")]
    page = content | {"warnings": warnings, "pictures": pictures, "sections": sections(d)}
    write_page(folder / "index.html", "prm.report", "profile.html", **page)


@drawn
def people_picture(people: UserCounts) -> Figure:
    """Bars of the shares of people and of comparisons, in percent, by comparisons per person."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    positions = range(len(people.histogram))
    series = (
        ("users", PERSONAL, [b.share_of_people for b in people.histogram]),
        ("comparisons", UNIFORM, [b.share_of_comparisons for b in people.histogram]),
    )
    for shift, (name, colour, shares) in zip((-0.2, 0.2), series, strict=True):
        bars = axes.bar(
            [x + shift for x in positions], [100 * s for s in shares], 0.38, color=colour, label=f"of {name}"
        )
        axes.bar_label(bars, labels=[_rounded(100 * s) for s in shares], fontsize=8)
    axes.set_xticks(positions, [b.label for b in people.histogram], size=8)
    axes.set_xlabel("comparisons per user, without ties")
    axes.set_ylabel("%")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _rounded(percentage: float) -> str:
    return "<1" if 0 < percentage < 0.5 else f"{percentage:.0f}"


@drawn
def length_picture(taste: LengthTaste) -> Figure:
    """People by how often they chose the longer response; the line is expected by chance if all share one rate."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    centres = [10 * i + 5 for i in range(len(taste.rates))]
    axes.bar(centres, taste.rates, 9, color=PERSONAL, label="users")
    axes.plot(centres, taste.expected, "o-", ms=4, color=UNIFORM, label="by chance, if all shared one rate")
    axes.axvline(50, color=MUTED, lw=0.8, ls=":")
    axes.set_xticks(range(0, 101, 10))
    axes.set_xlabel("longer response chosen, % of a user's comparisons")
    axes.set_ylabel("users")
    whole_numbers(axes, "y")
    figure.legend(loc="outside upper center", ncols=2)
    return figure
