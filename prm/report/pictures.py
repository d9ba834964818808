"""Pictures that several reports share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prm.io.formatting import figure as figure_of


def heat_pictures(matrices: dict[str, Any], rows: Sequence[str], columns: Sequence[str], label: str) -> Figure:
    """Signed matrices [rows, columns] side by side, with their values, coloured around 0 on one scale."""
    figure = Figure(figsize=(0.8 * len(columns) * len(matrices) + 2.4, 0.36 * len(rows) + 1.3), layout="constrained")
    panels = figure.subplots(1, len(matrices), sharey=True, squeeze=False)[0]
    bound = max(float(np.nanmax(abs(values), initial=0.0)) for values in matrices.values()) or 1.0
    image: Any = None
    for axes, (title, values) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(values, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
        for i in range(len(rows)):
            for j in range(len(columns)):
                colour = "white" if abs(values[i, j]) > 0.6 * bound else "black"
                axes.text(j, i, figure_of(values[i, j], sign="+"), ha="center", va="center", color=colour, size=8)
        axes.set_title(title)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=list(panels), label=label, shrink=0.8)
    return figure
