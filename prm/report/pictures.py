"""Pictures that several reports share."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from prm.evaluation.audit.per_user import UserResult, UserResults
from prm.evaluation.rows import PERSONAL as PERSONAL_MODEL
from prm.evaluation.rows import UNIFORM as UNIFORM_MODEL
from prm.io.formatting import figure as figure_of
from prm.metrics import Array, Calibration, Estimate
from prm.report.drawing import INK, MUTED, PAPER, PERSONAL, UNIFORM, WIDTH, drawn, shortened, whole_numbers
from prm.report.text.audit_users import ends

POINTS, NATS = "accuracy gained, percentage points", "log loss lower by, nats"
_UNTESTED = "not tested"
_CLASSES = {  # of users: (fill, line)
    "gains": (PERSONAL, PERSONAL), "unclear": (MUTED, MUTED), "loses": (UNIFORM, UNIFORM), _UNTESTED: (PAPER, MUTED),
}  # fmt: skip
_MOST_LABELLED = 24  # users with a line of their own
_MAX_BINS = 24


@drawn
def interval_picture(rows: Sequence[tuple[str, Estimate]], unit: Literal["points", "nats"]) -> Figure:
    """A line for each gain in accuracy, or decrease in log loss, with its 95% interval; grey where that includes 0."""
    scale, digits, label = (100.0, 1, POINTS) if unit == "points" else (1.0, 3, NATS)
    picture = Figure(figsize=(WIDTH, 0.36 * len(rows) + 0.9), layout="constrained")
    axes = picture.subplots()
    for y, (_, e) in enumerate(rows):
        colour = PERSONAL if e.low > 0 else UNIFORM if e.high < 0 else MUTED
        if np.isfinite([e.low, e.high]).all():
            axes.plot([scale * e.low, scale * e.high], [y, y], color=colour, lw=2, solid_capstyle="round", zorder=1)
        axes.scatter(scale * e.value, y, color=colour, s=34, zorder=2)
        text, place = figure_of(scale * e.value, digits, "+"), (scale * e.value, y)
        axes.annotate(text, place, xytext=(0, 5), textcoords="offset points", ha="center", size=8)
    axes.axvline(0, color=MUTED, lw=0.8, ls=":")
    axes.set_yticks(range(len(rows)), [shortened(name) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(label)
    return picture


@drawn
def change_picture(changes: UserResults) -> Figure:
    """Each user's decrease in log loss by personalisation, with 95% intervals; colours mark clear gains and losses.

    Intervals that are infinite or very wide are cut, and end in an arrow.
    """
    everyone = changes.enough or changes.people
    people = ends(everyone, _MOST_LABELLED)
    figure = Figure(figsize=(WIDTH, 0.19 * len(people) + 1.2), layout="constrained")
    axes = figure.subplots()
    edge, cut = 3 * (max((abs(one.nats.value) for one in people), default=0.0) or 1.0), 0
    for y, one in enumerate(people):
        fill, colour = _CLASSES[_class(one)]
        low, high = max(one.nats.low, -edge), min(one.nats.high, edge)
        axes.plot([low, high], [y, y], color=colour, lw=1.5, zorder=1)
        arrows = [(low, "<")] * (low > one.nats.low) + [(high, ">")] * (high < one.nats.high)
        for end, marker in arrows:
            axes.scatter(end, y, color=colour, s=22, marker=marker, zorder=2)
        cut += len(arrows)
        axes.scatter(one.nats.value, y, facecolors=fill, edgecolors=colour, s=22, zorder=2)
    for name in _classes(people):
        fill, colour = _CLASSES[name]
        axes.scatter([], [], facecolors=fill, edgecolors=colour, s=22, label=name)
    if cut:
        axes.scatter([], [], color=MUTED, s=22, marker=">", label="interval goes on")
    if left := len(everyone) - len(people):
        middle = len(people) / 2 - 0.5
        axes.axhline(middle, color=MUTED, lw=0.8)
        text = axes.text(0.99, middle, f"{left} more users", transform=axes.get_yaxis_transform(), ha="right", size=8)
        text.set(va="center", backgroundcolor=PAPER)
    axes.axvline(0, color=MUTED, lw=0.8, ls=":")
    axes.set_yticks(range(len(people)), [shortened(one.user) for one in people], size=8)
    axes.set_ylim(len(people) - 0.4, -0.6)
    axes.set_xlabel(NATS)
    figure.legend(loc="outside upper center", ncols=3, handletextpad=0.2)
    return figure


@drawn
def change_histogram(changes: UserResults) -> Figure:
    """Number of users by their decrease in log loss, stacked by whether it is clear; no bar includes both signs."""
    people = changes.enough or changes.people
    values = np.array([one.nats.value for one in people])
    width = _bin_width(values)
    edges = width * np.arange(np.floor(values.min() / width), np.floor(values.max() / width) + 2)
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    bottom = np.zeros(len(edges) - 1)
    for name in _classes(people):
        fill, colour = _CLASSES[name]
        counts = np.histogram([one.nats.value for one in people if _class(one) == name], edges)[0]
        axes.bar(edges[:-1], counts, 0.92 * width, bottom, align="edge", color=fill, edgecolor=colour, label=name)
        bottom += counts
    axes.axvline(0, color=INK, lw=0.8, ls=":")
    whole_numbers(axes, "y")
    axes.set_ylabel("users")
    axes.set_xlabel(NATS)
    figure.legend(loc="outside upper center", ncols=3, handletextpad=0.4)
    return figure


def _class(one: UserResult) -> str:
    return one.nats_verdict if one.is_tested else _UNTESTED


def _classes(people: Sequence[UserResult]) -> list[str]:
    """Names of a legend; untested users are in a picture only if no user is tested."""
    return [name for name in _CLASSES if name != _UNTESTED or not all(one.is_tested for one in people)]


def _bin_width(values: Array) -> float:
    """A round width (1, 2 or 5 times a power of ten) that gives at most so many bins as are readable."""
    least = max(float(np.ptp(values)), 1e-3) / min(_MAX_BINS, max(5.0, 2.0 * np.sqrt(len(values))))
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= least))


@drawn
def reliability_picture(models: Mapping[str, Calibration], title: str = "") -> Figure:
    """Predicted and observed P(picked response) of each model, with binomial 95% intervals."""
    colours = {PERSONAL_MODEL: PERSONAL, UNIFORM_MODEL: UNIFORM}
    figure = Figure(figsize=(4.0, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], color=MUTED, lw=0.8, ls=":")
    for name, c in models.items():
        bars = [[b.observed - b.low for b in c.bins], [b.high - b.observed for b in c.bins]]
        x, y = [b.predicted for b in c.bins], [b.observed for b in c.bins]
        label = f"{name}: {c.error:.3f} ({c.by_chance:.3f})"
        axes.errorbar(x, y, bars, fmt="o", color=colours.get(name, MUTED), ms=4.5, lw=1.2, label=label)
    axes.set_title(title, loc="left")
    axes.set_xlim(0.48, 1.02)
    axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1])
    axes.set_xlabel("predicted P(picked response)")
    axes.set_ylabel("share in which it was chosen")
    figure.legend(loc="outside upper left", title="calibration error (by chance)", alignment="left", handletextpad=0.2)
    return figure


@drawn
def heat_picture(title: str, values: Array, rows: Sequence[str], columns: Sequence[str], bound: float) -> Figure:
    """A signed matrix [rows, columns] with its values, coloured around 0; the deepest colour is that of `bound`."""
    figure = Figure(figsize=(0.58 * len(columns) + 1.0, 0.32 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(values, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    for i in range(len(rows)):
        for j in range(len(columns)):
            colour = "white" if abs(values[i, j]) > 0.6 * bound else "black"
            axes.text(j, i, figure_of(values[i, j], sign="+"), ha="center", va="center", color=colour, size=8)
    axes.set_title(title, loc="left")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
