"""The two lemmas: tables, a picture and a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from prm.files import write_json
from prm.report.page import MUTED, PERSONAL, UNIFORM, save_picture, write_page
from prm.report.terminal import show, table
from prm.theory import Groups, Pair, Theory

_LEMMA_32 = "Lemma 3.2: the vanilla model gives each pair its vote share where the comparison graph is a forest"
_LEMMA_33 = "Lemma 3.3: the larger the majority, the further the minority is from the population"
WHAT_FOLLOWS = (
    "What follows: a reward model that knows nobody gives everybody what most people like, and more judgements by the "
    "same people only make it surer of that.",
    "So look at people, not at one accuracy for all: 'prm data describe LOG' says whether they differ, 'prm evaluate "
    "RUN' what a personal model gains over a tuned uniform one, 'prm audit RUN' who gains and who loses.",
    "Where tastes are equal, as in the last rows, the uniform model is all that is needed.",
)


def lemma_tables(t: Theory) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of each lemma's numbers."""
    votes = []
    for graph, pairs in (("forest", t.forest), ("cycle", t.cycle)):
        for p in pairs:
            cells = [f"{p.votes_first:g} : {p.votes_second:g}", f"{p.share:.3f}", f"{p.fitted:.3f}"]
            limit = "in the limit of an infinite margin" if p.limit else ""
            off = f"{round(p.fitted - p.share, 3) + 0.0:+.3f}"  # never -0.000
            votes.append([graph, f"{p.first} over {p.second}", *cells, off, limit])
    distances = [
        [f"{g.taste_majority:g} and {g.taste_minority:g}", f"{share:.2f}", f"{majority:.3f}", f"{minority:.3f}"]
        for g in t.groups
        for share, majority, minority in list(zip(g.share, g.majority, g.minority, strict=True))[::2]
    ]
    return [
        (_LEMMA_32, ["graph", "pair", "votes", "share", "fitted", "off by", ""], votes),
        (_LEMMA_33, ["tastes", "majority's share", "majority off by", "minority off by"], distances),
    ]


def print_theory(t: Theory) -> None:
    """Both lemmas as terminal tables, and what follows for a user."""
    show(*(table(title, header, rows) for title, header, rows in lemma_tables(t)), "", *WHAT_FOLLOWS)


def write_theory(t: Theory, folder: Path) -> None:
    """`theory.json`, `theory.png` and the page `index.html` in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "theory.json", t.to_dict())
    picture = save_picture(theory_picture(t), folder / "theory.png")
    write_page(
        folder / "index.html", "prm", "theory.html", picture=picture, tables=lemma_tables(t), follows=WHAT_FOLLOWS
    )


def theory_picture(t: Theory) -> Figure:
    """Left, fitted preference against vote share; right, each group's distance from the population."""
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=":")
    for pairs, colour, label in ((t.forest, PERSONAL, "forest"), (t.cycle, UNIFORM, "cycle")):
        _scatter_pairs(left, pairs, colour, label)
    left.set_xlabel("share of votes for the first answer")
    left.set_ylabel("P(first preferred), vanilla model")
    left.set_title("Lemma 3.2: a forest is on the diagonal", fontsize=11)
    for groups, colour in zip(t.groups, (PERSONAL, UNIFORM, MUTED), strict=True):
        _plot_groups(right, groups, colour)
    right.set_xlabel("share of the majority")
    right.set_ylabel("distance from the population")
    right.set_title("Lemma 3.3: the minority is left behind", fontsize=11)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    return figure


def _scatter_pairs(axes: Any, pairs: Sequence[Pair], colour: str, label: str) -> None:
    """One dot per pair, hollow where it is a limit, with a line to the diagonal that says by how much it is off."""
    for p in pairs:
        axes.plot([p.share, p.share], [p.share, p.fitted], color=colour, lw=1)
        axes.scatter(p.share, p.fitted, s=40, color="white" if p.limit else colour, edgecolors=colour, zorder=3)
        if abs(p.fitted - p.share) >= 0.005:
            text = f"{p.first} over {p.second}: {p.fitted - p.share:+.2f}"
            axes.annotate(text, (p.share, p.fitted), (7, -9), textcoords="offset points", fontsize=8)
    axes.scatter([], [], s=40, color=colour, label=label)
    if any(p.limit for p in pairs):
        axes.scatter([], [], s=40, color="white", edgecolors=colour, label=f"{label}, limit of an infinite margin")


def _plot_groups(axes: Any, g: Groups, colour: str) -> None:
    tastes = f"P = {g.taste_majority:g} and {g.taste_minority:g}"
    axes.plot(g.share, g.minority, color=colour, label=f"minority, {tastes}")
    axes.plot(g.share, g.majority, color=colour, ls="--", label=f"majority, {tastes}")
