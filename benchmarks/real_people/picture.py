"""The picture of new users: a panel for each set, a line for each personal model."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.real_people.results import Measured, Step, estimate_of
from prm.evaluation.compare.summary import BEST_PERSONAL
from prm.io.tables import write_bytes
from prm.metrics import FEW_PEOPLE
from prm.report.drawing import INK, MUTED, PALE, PERSONAL, THIRD, UNIFORM, WIDTH, drawn
from prm.report.text.model_comparison import name_of

COLUMNS = 2
STYLES = ((UNIFORM, "-"), (THIRD, "-"), (PALE, "-"), (PERSONAL, "-"), (UNIFORM, "--"), (THIRD, "--"), (PALE, "--"))


def write_picture(path: Path, sets: Mapping[str, Measured]) -> None:
    """Write `picture_of` the sets as an SVG file."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "prm"}):
        picture_of(sets).savefig(buffer, format="svg", metadata={"Date": None})
    write_bytes(path, buffer.getvalue())


@drawn
def picture_of(sets: Mapping[str, Measured]) -> Figure:
    """How much lower the log loss of new users is than the best baseline's; without steps of fewer than five people."""
    panels = [(found["title"], _steps(found)) for found in sets.values() if _steps(found)]
    rows = max(1, -(-len(panels) // COLUMNS))
    picture = Figure(figsize=(WIDTH * COLUMNS * 0.9, 2.7 * rows + 0.5), layout="constrained")
    grid = picture.subplots(rows, COLUMNS, squeeze=False).flat
    for axes, (title, steps) in zip(grid, panels, strict=False):
        _panel(axes, title, steps)
    for axes in list(picture.axes)[len(panels) :]:
        axes.set_axis_off()
    lines = {line.get_label(): line for axes in picture.axes for line in axes.get_lines()}
    picture.legend(list(lines.values()), list(map(str, lines)), loc="outside upper center", ncols=4)
    return picture


def _steps(found: Measured) -> Sequence[Step]:
    return [step for step in found["result"]["new_users"] if step["gains"] and step["people"] >= FEW_PEOPLE]


def _panel(axes: Axes, title: str, steps: Sequence[Step]) -> None:
    axes.axhline(0.0, color=MUTED, lw=1, label="best baseline")
    x = range(len(steps))
    names = [name for name in steps[0]["gains"] if name != BEST_PERSONAL]
    for name, (colour, dashes) in zip(names, STYLES, strict=False):
        values = [step["gains"][name]["nats"]["value"] for step in steps]
        axes.plot(x, values, color=colour, ls=dashes, lw=1.5, label=name_of(name))
    best = [estimate_of(step["gains"][BEST_PERSONAL]["nats"]) for step in steps]
    axes.plot(x, [e.value for e in best], "o", color=INK, ms=4, label=name_of(BEST_PERSONAL))
    axes.fill_between(x, [e.low for e in best], [e.high for e in best], color=INK, alpha=0.1, lw=0)
    axes.set_xticks(x, [str(step["after"]) for step in steps])
    axes.set_xlabel("comparisons of each new user")
    axes.set_ylabel("lower log loss, nats")
    axes.set_title(title, loc="left")
