"""Arms side by side: when to choose which, gain against divergence, who wins against whom, and answers to read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.text import Text

from prm.io.disk import make_folder
from prm.io.tables import write_text
from prm.metrics import Array, Estimate
from prm.report.page import MUTED, PERSONAL, UNIFORM, markdown, save_picture, write_page
from prm.report.terminal import laid_out, show
from prm.report.text.profile import Section

_LONGEST_NAME = 12
_BESIDE = tuple((x, y) for x in (9, -9, 17, -17) for y in (7, -7))  # points; where a letter may stand
_APART = 6.5  # points between its middle and others'
_LINES = (UNIFORM, MUTED, "#4c8c5a")


@dataclass(frozen=True)
class ArmPoint:
    """An arm in a panel.

    Args:
        letter: what stands beside the point; the legend has the name.
        x: `None` where there is no such number: the arm is then a dotted line.
        line: points with the same word here are joined.
    """

    letter: str
    name: str
    x: float | None
    y: Estimate
    line: str


@dataclass(frozen=True)
class ArmPanel:
    """Arms for some people."""

    title: str
    points: tuple[ArmPoint, ...]


@dataclass(frozen=True)
class LengthPanel:
    """An arm's words for each person: mean and standard error (NaN where there is none), and everybody's group."""

    name: str
    people: tuple[str, ...]
    groups: tuple[str, ...]
    lengths: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Sample:
    """A prompt, who asked it, and (arm, answer, reward) of each."""

    prompt: str
    who: str
    answers: tuple[tuple[str, str, str], ...]


def print_arms(title: str, advice: Sequence[str], found: Sequence[Section]) -> None:
    """What the arms are worth and cost, on the terminal, when to choose which last; the page has the rest."""
    show(Text(title, style="bold"), *laid_out(found[:2]), "", Text("when to choose which", style="bold"), *advice)


def write_arms(
    folder: Path,
    title: str,
    advice: Sequence[str],
    found: Sequence[Section],
    panels: Sequence[ArmPanel],
    samples: Sequence[Sample],
    label: str,
    lengths: Sequence[LengthPanel],
) -> None:
    """`compare.md`, `compare.png` and the page `index.html`, in a folder that is made if need be.

    Where there are `lengths`, the first of them the base's, `words.png` too.
    """
    make_folder(folder)
    lines = [f"# {title}", "", *(f"- {sentence}" for sentence in advice)]
    for part in found:
        lines += ["", f"## {part.title}", "", *markdown(part.header, part.rows), *(f"\n{note}" for note in part.notes)]
    write_text(folder / "compare.md", "\n".join(lines) + "\n")
    picture = save_picture(arms_picture(panels, label), folder / "compare.png")
    long = save_picture(lengths_picture(lengths), folder / "words.png") if lengths else ""
    content = {"title": title, "advice": advice, "sections": found, "samples": samples, "words": long}
    write_page(folder / "index.html", "prm.report", "compare.html", picture=picture, **content)


def arms_picture(panels: Sequence[ArmPanel], label: str) -> Figure:
    """A panel for each group of people: gain with its interval over divergence, the axis by its square root."""
    figure = Figure(figsize=(4.6 * len(panels) + 0.6, 5.2), layout="constrained")
    row = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    places = [p.x for panel in panels for p in panel.points if p.x is not None]
    most, least = max(places, default=0.0) or 1.0, min(0.0, *places, 0.0)  # an estimate may be below 0
    for axes, panel in zip(row, panels, strict=True):
        _draw(axes, panel)
        axes.set_xscale("function", functions=(_signed_root, _signed_square))
        axes.set_xlim(1.12 * least, 1.12 * most)
        # evenly spaced ones would stand on each other at the far end
        digits = 0 if most >= 10.0 else 1 if most >= 1.0 else 2
        ticks = np.round(1.12 * most * np.linspace(0.0, 1.0, 5) ** 2, digits)
        axes.set_xticks(np.unique([*ticks, *([np.round(least, max(digits, 1))] if least < 0.0 else [])]))
        axes.set_title(panel.title, fontsize=11)
        axes.set_xlabel("KL from the base, nats (axis by its square root)")
        axes.spines[["top", "right"]].set_visible(False)
        _name_points(axes, [p for p in panel.points if p.x is not None])
    row[0].set_ylabel(label)
    handles = [row[0].plot([], [], " ", label=f"{p.letter}  {p.name}")[0] for p in panels[0].points]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(2, min(5, 1 + 2 * len(panels))),
        frameon=False,
        fontsize=9,
        handlelength=0,
        handletextpad=0,
    )
    return figure


def _signed_root(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.sqrt(np.abs(x)))


def _signed_square(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.square(x))


def lengths_picture(panels: Sequence[LengthPanel]) -> Figure:
    """A small panel for each arm: bars of words by person, a colour for each group, the first arm's mean dashed."""
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    width = max(2.8, 0.26 * len(panels[0].people) + 0.6)
    figure = Figure(figsize=(width * columns + 0.4, 2.0 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    groups = list(dict.fromkeys(panels[0].groups))
    colours = dict(zip(groups, (UNIFORM, PERSONAL, *_LINES[1:]) * len(groups), strict=False))
    first = float(np.mean([value for value, _ in panels[0].lengths]))
    for axes, panel in zip(grid, panels, strict=False):
        for i, ((value, error), group) in enumerate(zip(panel.lengths, panel.groups, strict=True)):
            axes.bar(i, value, color=colours[group], yerr=error if np.isfinite(error) else None, width=0.75)
        axes.axhline(first, color=MUTED, lw=0.9, ls="--")
        axes.set_title(panel.name, fontsize=10)
        axes.set_xticks(range(len(panel.people)), [_short(name) for name in panel.people], rotation=90, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for i, axes in enumerate(grid[len(panels) :], start=len(panels)):
        axes.set_visible(False)
        grid[i - columns].tick_params(labelbottom=True)  # the lowest that is left of its column
    handles = [grid[0].bar(0, 0, color=colours[group], label=group) for group in groups]
    handles.append(grid[0].plot([], [], color=MUTED, ls="--", label=f"mean of {panels[0].name}")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.supylabel("words an answer, person by person", fontsize=10)
    return figure


def _name_points(axes: Axes, points: Sequence[ArmPoint]) -> None:
    """A letter beside each point, on the side where no other point or letter stands."""
    pixels = axes.figure.dpi / 72.0
    at = [axes.transData.transform((p.x or 0.0, p.y.value)) / pixels for p in points]
    taken = list(at)
    for p, here in zip(points, at, strict=True):
        places = [here + offset for offset in _BESIDE]
        room = [min((float(np.abs(place - t).max()) for t in taken), default=np.inf) for place in places]
        best = next((i for i, r in enumerate(room) if r >= _APART), int(np.argmax(room)))
        taken.append(places[best])
        axes.annotate(
            p.letter,
            (p.x or 0.0, p.y.value),
            xytext=_BESIDE[best],
            textcoords="offset points",
            size=9,
            ha="center",
            va="center",
        )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


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
