"""The report of a comparison of arms: advice, gain against divergence, wins, lengths, and sample responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.text import Text

from prm.io.disk import make_folder
from prm.io.tables import write_text
from prm.metrics import Array, Estimate
from prm.report.drawing import MUTED, PERSONAL, THIRD, UNIFORM, drawn, save_picture, shortened, svg
from prm.report.page import markdown, write_page
from prm.report.section import Section
from prm.report.terminal import laid_out, show

_LONGEST_NAME = 12
_WIDEST = 7.0  # inches of a grid of panels
_OFFSETS = tuple((x, y) for x in (9, -9, 17, -17) for y in (7, -7))  # of a letter from its point, in points
_MIN_DISTANCE = 6.5  # points between the centre of a letter and other centres
_LINES = (UNIFORM, MUTED, THIRD)


@dataclass(frozen=True)
class ArmPoint:
    """An arm in a panel.

    Args:
        letter: the label beside the point; the legend has the name.
        x: `None` if there is no such number: the arm is then a dotted line.
        line: points with the same value are joined.
    """

    letter: str
    name: str
    x: float | None
    y: Estimate
    line: str


@dataclass(frozen=True)
class ArmPanel:
    """The arms for one group of users."""

    title: str
    points: tuple[ArmPoint, ...]


@dataclass(frozen=True)
class LengthPanel:
    """An arm's words per response for each user: mean and standard error (NaN if there is none), and their group."""

    name: str
    people: tuple[str, ...]
    groups: tuple[str, ...]
    lengths: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Sample:
    """A prompt, its user, and (arm, response, reward) for each arm."""

    prompt: str
    who: str
    answers: tuple[tuple[str, str, str], ...]


def print_arms(title: str, advice: Sequence[str], parts: Sequence[Section], lead: Section | None = None) -> None:
    """Print the leading table, if any, two more and then the advice; the page has the rest."""
    shown = [*([lead] if lead else []), *parts[:2]]
    show(Text(title, style="bold"), *laid_out(shown), "", Text("when to choose which", style="bold"), *advice)


def write_arms(
    folder: Path,
    title: str,
    advice: Sequence[str],
    parts: Sequence[Section],
    panels: Sequence[ArmPanel],
    samples: Sequence[Sample],
    label: str,
    lengths: Sequence[LengthPanel],
    lead: Section | None = None,
) -> None:
    """Write `compare.md`, `compare.png` and the page `index.html`; create the folder if need be.

    With `lengths`, of which the first is the base's, also `words.png`.

    Args:
        lead: the table that comes before the advice.
    """
    make_folder(folder)
    lines = [f"# {title}"]
    lines += [*_markdown(lead), "", "## When to choose which"] if lead else []
    lines += ["", *(f"- {sentence}" for sentence in advice)]
    for part in parts:
        lines += _markdown(part)
    write_text(folder / "compare.md", "\n".join(lines) + "\n")
    save_picture(arms_picture(panels, label), folder / "compare.png")
    pictures = {panel.title: svg(arms_picture([panel], label, legend=False)) for panel in panels}
    names = [f"{p.letter} {p.name}" for p in panels[0].points]
    words = save_picture(lengths_picture(lengths), folder / "words.png") if lengths else Markup()
    content = {
        "title": title,
        "lead": [lead] if lead else [],
        "advice": advice,
        "sections": parts,
        "samples": samples,
        "words": words,
    }
    write_page(folder / "index.html", "prm.report", "compare.html", pictures=pictures, names=names, **content)


def _markdown(part: Section) -> list[str]:
    table = markdown(part.header, part.rows)
    return ["", f"## {part.title}", "", *table, *(f"\n{note}" for note in part.notes)]


@drawn
def arms_picture(panels: Sequence[ArmPanel], label: str, legend: bool = True) -> Figure:
    """A panel for each group of users: gain with its interval over divergence, on a square-root axis."""
    figure = Figure(figsize=(4.4 * len(panels) + 0.4, 4.8), layout="constrained")
    row = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    places = [p.x for panel in panels for p in panel.points if p.x is not None]
    maximum, minimum = max(places, default=0.0) or 1.0, min(0.0, *places, 0.0)  # an estimate may be below 0
    for axes, panel in zip(row, panels, strict=True):
        _draw(axes, panel)
        axes.set_xscale("function", functions=(_signed_root, _signed_square))
        axes.set_xlim(1.12 * minimum, 1.12 * maximum)
        # evenly spaced ticks would overlap at the far end
        digits = 0 if maximum >= 10.0 else 1 if maximum >= 1.0 else 2
        ticks = np.round(1.12 * maximum * np.linspace(0.0, 1.0, 5) ** 2, digits)
        axes.set_xticks(np.unique([*ticks, *([np.round(minimum, max(digits, 1))] if minimum < 0.0 else [])]))
        axes.set_title(panel.title)
        axes.set_xlabel("KL from the base, nats (square-root axis)")
        _name_points(axes, [p for p in panel.points if p.x is not None])
    row[0].set_ylabel(label)
    if not legend:
        return figure
    names = [f"{p.letter}  {shortened(p.name)}" for p in panels[0].points]
    handles = [row[0].plot([], [], " ", label=name)[0] for name in names]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(2, min(5, 1 + 2 * len(panels))),
        fontsize=9,
        handlelength=0,
        handletextpad=0,
    )
    return figure


def _signed_root(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.sqrt(np.abs(x)))


def _signed_square(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.square(x))


@drawn
def lengths_picture(panels: Sequence[LengthPanel]) -> Figure:
    """A panel for each arm: a bar of words for each user, a colour for each group, the first arm's mean dashed."""
    width = max(2.8, 0.26 * len(panels[0].people) + 0.6)
    num_columns = max(1, min(len(panels), int(_WIDEST / width)))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(width * num_columns + 0.4, 2.0 * num_rows + 0.9), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).flatten()
    groups = list(dict.fromkeys(panels[0].groups))
    colours = dict(zip(groups, (UNIFORM, PERSONAL, *_LINES[1:]) * len(groups), strict=False))
    first = float(np.mean([value for value, _ in panels[0].lengths]))
    for axes, panel in zip(grid, panels, strict=False):
        for i, ((value, error), group) in enumerate(zip(panel.lengths, panel.groups, strict=True)):
            axes.bar(i, value, color=colours[group], yerr=error if np.isfinite(error) else None, width=0.75)
        axes.axhline(first, color=MUTED, lw=0.9, ls="--")
        axes.set_title(panel.name, fontsize=10)
        names = [shortened(name, _LONGEST_NAME) for name in panel.people]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    for i, axes in enumerate(grid[len(panels) :], start=len(panels)):
        axes.set_visible(False)
        grid[i - num_columns].tick_params(labelbottom=True)  # now the lowest of its column
    handles = [grid[0].bar(0, 0, color=colours[group], label=group) for group in groups]
    handles.append(grid[0].plot([], [], color=MUTED, ls="--", label=f"mean of {panels[0].name}")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), fontsize=9)
    figure.supylabel("words per response, by user", fontsize=10)
    return figure


def _name_points(axes: Axes, points: Sequence[ArmPoint]) -> None:
    """Put a letter beside each point, where it overlaps no other point or letter."""
    pixels = axes.figure.dpi / 72.0
    centres = [axes.transData.transform((p.x or 0.0, p.y.value)) / pixels for p in points]
    occupied = list(centres)
    for p, centre in zip(points, centres, strict=True):
        places = [centre + offset for offset in _OFFSETS]
        distances = [min((float(np.abs(place - t).max()) for t in occupied), default=np.inf) for place in places]
        best = next((i for i, r in enumerate(distances) if r >= _MIN_DISTANCE), int(np.argmax(distances)))
        occupied.append(places[best])
        axes.annotate(
            p.letter,
            (p.x or 0.0, p.y.value),
            xytext=_OFFSETS[best],
            textcoords="offset points",
            size=9,
            ha="center",
            va="center",
        )


def _draw(axes: Axes, panel: ArmPanel) -> None:
    lines = dict(zip(dict.fromkeys(p.line for p in panel.points if p.line), _LINES * len(panel.points), strict=False))
    for line, colour in lines.items():
        joined = [p for p in panel.points if p.line == line and p.x is not None]
        axes.plot([p.x or 0.0 for p in joined], [p.y.value for p in joined], color=colour, lw=1.2, zorder=1)
    for p in panel.points:
        if p.x is None:
            axes.axhline(p.y.value, color=MUTED, lw=0.8, ls=":")
            axes.text(1.0, p.y.value, p.letter, transform=axes.get_yaxis_transform(), va="bottom", ha="right", size=9)
            continue
        colour = lines.get(p.line, PERSONAL)
        low, high = (end if np.isfinite(end) else p.y.value for end in (p.y.low, p.y.high))
        axes.plot([p.x, p.x], [low, high], color=colour, lw=0.9, alpha=0.5, zorder=1)
        axes.scatter(p.x, p.y.value, color=colour, s=26, zorder=2, clip_on=False)
    axes.axhline(0.0, color=MUTED, lw=0.8)
