"""Tables, pictures and self-contained pages: the one module that writes them, for every command."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from prm.audit import Audit
from prm.audit import words as audit
from prm.audit.leanings import LengthOfPerson
from prm.audit.people import People as Changes
from prm.describe import Description
from prm.describe.differences import LengthTaste
from prm.describe.people import People
from prm.describe.words import Section, headline, sections, share
from prm.evaluate import PERSONAL as OURS
from prm.evaluate import UNIFORM as THEIRS
from prm.evaluate import Evaluation
from prm.evaluate import words as evaluate
from prm.files import write_json
from prm.metrics import LEAST_JUDGED

matplotlib.use("Agg")

PERSONAL, UNIFORM, MUTED = "#2563a8", "#c2703d", "#9aa3ad"


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


def print_evaluation(result: Evaluation, title: str) -> None:
    """The evaluation as terminal tables."""
    show(Text(title, style="bold"), *_laid_out(evaluate.sections(result)))
    show("", *evaluate.notes(result))


def print_audit(result: Audit, title: str) -> None:
    """The audit as terminal tables, the short answer last."""
    show(Text(title, style="bold"), *_laid_out(audit.sections(result)))
    show("", Text(audit.headline(result), style="bold"))


def print_description(d: Description, title: str) -> None:
    """The description as terminal tables, the verdict last."""
    show(Text(title, style="bold"), *_laid_out(sections(d)))
    show("", Text(headline(d), style="bold"), *d.verdict.reasons)


def _laid_out(found: Sequence[Section]) -> list[Any]:
    """Each section's table, or its title alone, with its notes."""
    items: list[Any] = []
    for part in found:
        body = table(part.title, part.header, part.rows) if part.rows else Text(part.title, style="bold")
        items += ["", body, *part.notes]
    return items


def write_audit(a: Audit, folder: Path, title: str) -> None:
    """The page `index.html` with its pictures, in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"people": save_picture(change_picture(a.people), folder / "people.png"), "lengths": ""}
    if a.lengths:
        pictures["lengths"] = save_picture(leaning_picture(a.lengths), folder / "lengths.png")
    content = {"headline": audit.headline(a), "figures": audit.figures(a), "source": title}
    write_page(folder / "index.html", "prm", "audit.html", **content, pictures=pictures, sections=audit.sections(a))


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


def change_picture(changes: Changes) -> Figure:
    """Nats saved by personalisation with 95% intervals, person by person, coloured where it is sure which way."""
    everyone = sorted(changes.enough or changes.people, key=lambda one: one.nats.value)
    people = audit.ends(everyone, most=40)
    figure = Figure(figsize=(7.5, 0.22 * len(people) + 1.4), layout="constrained")
    axes = figure.subplots()
    values = [one.nats.value for one in people]
    reach = max(abs(value) for value in values) or 1.0
    for y, one in enumerate(people):
        colour = {"gains": PERSONAL, "loses": UNIFORM}.get(one.nats_verdict, MUTED)
        # an interval without an end, or far beyond every value, runs to the edge
        low, high = (min(max(end, -3 * reach), 3 * reach) for end in (one.nats.low, one.nats.high))
        axes.plot([low, high], [y, y], color=colour, lw=1.5, zorder=1)
        axes.scatter(one.nats.value, y, color=colour, s=28, zorder=2)
    for name, colour in (("gains", PERSONAL), ("loses", UNIFORM), ("cannot be told", MUTED)):
        axes.scatter([], [], color=colour, s=28, label=name)
    axes.axvline(0, color=MUTED, lw=0.8, ls=":")
    axes.set_yticks(range(len(people)), [_label(one.user) for one in people])
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(people) - 0.4, -0.6)
    axes.set_xlabel("nats saved per judgement, against the uniform model")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def leaning_picture(lengths: Sequence[LengthOfPerson]) -> Figure:
    """How often each person chose the longer answer, and how often the models pick it for them; by size of the log."""
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    lengths = [one for one in lengths if one.pairs >= LEAST_JUDGED] or lengths
    most = max(one.pairs for one in lengths)
    sizes = [10 + 60 * one.pairs / most for one in lengths]
    for name, colour in ((THEIRS, UNIFORM), (OURS, PERSONAL)):
        x, y = [100 * one.person for one in lengths], [100 * one.picks[name] for one in lengths]
        axes.scatter(x, y, s=sizes, color=colour, alpha=0.6, lw=0, label=name)
    axes.plot([0, 100], [0, 100], color=MUTED, lw=0.8, ls=":")
    axes.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
    axes.set_xlabel("longer answer chosen by the person, % of pairs")
    axes.set_ylabel("longer answer picked for them, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _label(user: str, most: int = 24) -> str:
    """An id as matplotlib shows it: short, and without a meaning of its own for dollars."""
    text = " ".join(user.split())
    return (text if len(text) <= most else text[: most - 1] + "\u2026").replace("$", r"\$")


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
