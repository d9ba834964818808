"""Tables, pictures and self-contained pages: the one module that writes them, for every command."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib
from matplotlib.figure import Figure
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from prm.describe import Description
from prm.describe.differences import LengthTaste
from prm.describe.people import People
from prm.describe.words import headline, sections, share
from prm.files import write_json
from prm.metrics import Estimate
from prm.theory import Groups, Pair, Theory

if TYPE_CHECKING:  # it brings torch in
    from prm.evaluate import Evaluation

matplotlib.use("Agg")

_FEW, _FEW_PEOPLE = 200, 5  # below these an interval over people says next to nothing

_IN_SLICES = ("personal", "generic user", "uniform, tuned")

PERSONAL, UNIFORM, MUTED = "#2563a8", "#c2703d", "#9aa3ad"


def percent(e: Estimate) -> str:
    """An accuracy with its 95% interval, in percent."""
    return f"{100 * e.value:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]"


def nats(e: Estimate | None) -> str:
    """A likelihood with its interval, in nats; a dash for rules without one."""
    return "-" if e is None else f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], numeric: int = 1) -> Group:
    """A titled terminal table whose columns from `numeric` on are right-aligned."""
    out = Table(show_header=any(header))
    for i, name in enumerate(header):
        out.add_column(name, justify="right" if i >= numeric else "left", overflow="fold")
    for row in rows:
        out.add_row(*(Text(cell) for cell in row))
    return Group(Text(title, style="bold"), out)


def show(*items: Any) -> None:
    """Print tables and text to the terminal."""
    console = Console()
    for item in items:
        console.print(item, markup=False, highlight=False) if isinstance(item, str) else console.print(item)


def evaluation_rows(result: Evaluation) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of an evaluation."""
    header = ["", "accuracy %", "macro %", "nats"]
    rows = [[r.name, percent(r.accuracy), f"{100 * r.macro_accuracy:.1f}", nats(r.nll)] for r in result.rows]
    return header, rows


def slice_tables(result: Evaluation) -> list[Group]:
    """One table per metadata field: accuracy of the models on each of its values; controls are in the JSON."""
    tables = []
    for key in dict.fromkeys(s.key for s in result.slices):
        slices = [s for s in result.slices if s.key == key]
        names = [row.name for row in slices[0].rows if row.name in _IN_SLICES]
        header = [key, "comparisons", *names]
        rows = [
            [s.value, str(s.comparisons), *(percent(row.accuracy) for row in s.rows if row.name in names)]
            for s in slices
        ]
        tables.append(table(f"accuracy % by {key}", header, rows))
    return tables


def evaluation_notes(result: Evaluation) -> list[str]:
    """What must be said beside the table."""
    notes = [
        f"{result.comparisons} comparisons by {result.users} people, {result.unknown_users} of them unknown to the "
        f"model; {result.ties} ties (in nats only); 95% intervals by bootstrap over {result.drawn}"
    ]
    if result.gain is not None and result.gain_nll is not None:
        notes.append(
            f"gain over the tuned uniform model: {percent(result.gain)} points, {nats(result.gain_nll)} nats saved"
        )
    else:
        notes.append("no uniform model to compare with: train one (users.kind: uniform) and name it with --against")
    likelihood = {row.name: row.nll.value for row in result.rows if row.nll is not None}
    if likelihood.get("users shuffled", float("inf")) <= likelihood["personal"]:
        notes.append("warning: somebody else's taste predicts as well as their own, so nobody was learnt here")
    if result.note:
        notes.append(result.note)
    if result.comparisons < _FEW or result.users < _FEW_PEOPLE:
        notes.append("warning: too few comparisons or people for these numbers to mean much")
    return notes


def print_evaluation(result: Evaluation, title: str) -> None:
    """The evaluation as a terminal table."""
    show(table(title, *evaluation_rows(result)), *slice_tables(result), *evaluation_notes(result))


def print_description(d: Description, title: str) -> None:
    """The description as terminal tables, the verdict last."""
    show(Text(title, style="bold"))
    for section in sections(d):
        body = table(section.title, section.header, section.rows) if section.rows else Text(section.title, style="bold")
        show("", body, *section.notes)
    show("", Text(headline(d), style="bold"), *d.verdict.reasons)


def write_description(d: Description, folder: Path, title: str) -> None:
    """`describe.json` and the page `index.html`, with its pictures, in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "describe.json", {"data": title} | d.to_dict())
    pictures = {"people": save_picture(people_picture(d.people), folder / "people.png"), "lengths": ""}
    if d.differences.length_taste is not None:
        figure = length_picture(d.differences.length_taste)
        pictures["lengths"] = save_picture(figure, folder / "lengths.png")
    agreement = d.differences.agreement
    figures = [
        (f"{d.people.people:,}", "people"),
        (f"{d.people.comparisons:,}", "comparisons"),
        (f"{d.people.enough.people:,}", f"people with {d.people.enough.least} or more"),
        (share(d.longer_won.share if d.longer_won else None), "longer answer chosen"),
        (share(agreement.agree) if agreement else "-", "two people agree on a pair"),
    ]
    content = {"headline": headline(d), "reasons": d.verdict.reasons, "figures": figures, "source": title}
    warnings = [note for section in sections(d) for note in section.notes if note.startswith("warning")]
    page = content | {"warnings": warnings, "pictures": pictures, "sections": sections(d)}
    write_page(folder / "index.html", "prm", "describe.html", **page)


_LEMMA_32 = "Lemma 3.2: the vanilla model gives each pair its vote share where the comparison graph is a forest"
_LEMMA_33 = "Lemma 3.3: the larger the majority, the further the minority is from the population"


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
    """Both lemmas as terminal tables."""
    show(*(table(title, header, rows) for title, header, rows in lemma_tables(t)))


def write_theory(t: Theory, folder: Path) -> None:
    """`theory.json`, `theory.png` and the page `index.html` in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "theory.json", t.to_dict())
    picture = save_picture(theory_picture(t), folder / "theory.png")
    write_page(folder / "index.html", "prm", "theory.html", picture=picture, tables=lemma_tables(t))


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


def people_picture(people: People) -> Figure:
    """Bars of people and of comparisons, as shares in percent, by comparisons per person."""
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(people.histogram))
    series = (
        ("people", PERSONAL, [b.share_of_people for b in people.histogram]),
        ("comparisons", UNIFORM, [b.share_of_comparisons for b in people.histogram]),
    )
    for shift, (name, colour, shares) in zip((-0.2, 0.2), series, strict=True):
        bars = axes.bar([x + shift for x in places], [100 * s for s in shares], 0.38, color=colour, label=f"of {name}")
        axes.bar_label(bars, labels=[f"{100 * s:.0f}" for s in shares], fontsize=8, color=MUTED)
    axes.set_xticks(places, [b.label for b in people.histogram])
    axes.set_xlabel("comparisons of a person, ties aside")
    axes.set_ylabel("%")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=2, frameon=False)
    return figure


def length_picture(taste: LengthTaste) -> Figure:
    """People by how often they chose the longer answer; as a line, what chance gives where all share one rate."""
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.subplots()
    centres = [10 * i + 5 for i in range(len(taste.rates))]
    axes.bar(centres, taste.rates, 9, color=PERSONAL, label="people")
    axes.plot(centres, taste.expected, "o-", color=UNIFORM, label="by chance, if all shared one rate")
    axes.axvline(50, color=MUTED, lw=0.8, ls=":")
    axes.set_xticks(range(0, 101, 10))
    axes.set_xlabel("longer answer chosen, % of a person's comparisons")
    axes.set_ylabel("people")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=2, frameon=False)
    return figure


def accuracy_picture(per_user: dict[str, dict[str, float]], ceiling: dict[str, float] | None = None) -> Figure:
    """Accuracy per person: personal and uniform model as dots on one line each, the ceiling as a tick."""
    users = list(per_user)
    figure = Figure(figsize=(7.5, 0.36 * len(users) + 1.3), layout="constrained")
    axes = figure.subplots()
    for y, user in enumerate(users):
        entry = per_user[user]
        personal, uniform = entry["personal"], entry.get("uniform, tuned")
        if uniform is not None:
            axes.plot([uniform, personal], [y, y], color=MUTED, lw=1.5, zorder=1)
            axes.scatter(uniform, y, color=UNIFORM, s=36, zorder=2, label="uniform, tuned" if y == 0 else None)
        axes.scatter(personal, y, color=PERSONAL, s=36, zorder=3, label="personal" if y == 0 else None)
        if ceiling is not None:
            label = "noise ceiling" if y == 0 else None
            axes.scatter(ceiling[user], y, marker="|", color="black", s=120, zorder=2, label=label)
    axes.axvline(0.5, color=MUTED, lw=0.8, ls=":")
    axes.set_yticks(range(len(users)), users)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on held-out prompts")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=3, frameon=False)
    return figure


def heat_pictures(matrices: dict[str, Any], rows: Sequence[str], columns: Sequence[str], label: str) -> Figure:
    """Signed matrices [rows, columns] side by side, as colours around 0 on one scale, with their numbers."""
    figure = Figure(figsize=(0.8 * len(columns) * len(matrices) + 2.4, 0.36 * len(rows) + 1.3), layout="constrained")
    panels = figure.subplots(1, len(matrices), sharey=True, squeeze=False)[0]
    bound = max(float(abs(values).max()) for values in matrices.values()) or 1.0
    image: Any = None
    for axes, (title, values) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(values, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
        for i in range(len(rows)):
            for j in range(len(columns)):
                colour = "white" if abs(values[i, j]) > 0.6 * bound else "black"
                axes.text(j, i, f"{round(values[i, j], 1) + 0.0:+.1f}", ha="center", va="center", color=colour, size=8)
        axes.set_title(title)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=list(panels), label=label, shrink=0.8)
    return figure


def save_picture(figure: Figure, path: Path) -> str:
    """Write a PNG and return it as a data URI for a self-contained page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    path.write_bytes(buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def write_page(path: Path, package: str, template: str, **content: Any) -> None:
    """Render a package's template into one HTML file that needs nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("prm")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(environment.get_template(template).render(**content), encoding="utf-8")
    temporary.replace(path)
