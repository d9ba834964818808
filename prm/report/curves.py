"""The report of best of N: pictures of gain and win rate over k, tables and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.text import Text

from prm.io.disk import make_folder
from prm.io.tables import write_json, write_text
from prm.metrics import Estimate
from prm.report.drawing import INK, MUTED, PERSONAL, THIRD, UNIFORM, WIDTH, drawn, save_picture, svg
from prm.report.page import markdown, write_page
from prm.report.section import Section
from prm.report.terminal import laid_out, show


@dataclass(frozen=True)
class Panel:
    """Lines over k = 1, 2, ...: estimates (or `None`) with their intervals as bands, and bounds as dotted lines."""

    title: str
    label: str
    lines: Mapping[str, Sequence[Estimate | None]]
    bounds: Mapping[str, Sequence[float]]


def print_curves(parts: Sequence[Section], title: str) -> None:
    """Print the tables."""
    show(Text(title, style="bold"), *laid_out(parts))


def write_curves(
    folder: Path, title: str, result: dict[str, Any], parts: Sequence[Section], panels: Sequence[Panel]
) -> None:
    """Write `curve.json`, `curve.md`, `curve.png` and the page `index.html`; create the folder if need be."""
    make_folder(folder)
    write_json(folder / "curve.json", result)
    lines = [f"# {title}"]
    for part in parts:
        lines += ["", f"## {part.title}", "", *markdown(part.header, part.rows), *(f"\n{note}" for note in part.notes)]
    write_text(folder / "curve.md", "\n".join(lines) + "\n")
    save_picture(curves_picture(panels), folder / "curve.png")
    pictures = {panel.title: svg(curves_picture([panel])) for panel in panels}
    write_page(folder / "index.html", "prm.report", "curves.html", title=title, pictures=pictures, sections=parts)


@drawn
def curves_picture(panels: Sequence[Panel]) -> Figure:
    """The panels side by side, with k on a logarithmic scale to base 2."""
    figure = Figure(figsize=(WIDTH * len(panels), 3.8), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        n = max(len(line) for line in panel.lines.values())
        for (name, line), colour in zip(panel.lines.items(), (PERSONAL, UNIFORM, THIRD, MUTED)):
            k = [i for i, e in enumerate(line, start=1) if e is not None]
            known = [e for e in line if e is not None]
            axes.plot(k, [e.value for e in known], color=colour, lw=1.8, label=name)
            low, high = [e.low for e in known], [e.high for e in known]
            if np.isfinite([low, high]).all():
                axes.fill_between(k, low, high, color=colour, alpha=0.13, lw=0)
        for name, bound in panel.bounds.items():
            axes.plot(range(1, len(bound) + 1), bound, color=INK, lw=1, ls=":", label=name)
        axes.set_xscale("log", base=2)
        ticks = [2**i for i in range(20) if 2**i <= n]
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.set_xlabel("k, responses to choose from")
        axes.set_ylabel(panel.label)
        axes.set_title(panel.title, loc="left")
        axes.legend()
    return figure
