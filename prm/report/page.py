"""Writing of pictures, Markdown tables and self-contained pages."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from prm.io.tables import write_bytes, write_text

matplotlib.use("Agg")

PERSONAL, UNIFORM, MUTED = "#2563a8", "#c2703d", "#9aa3ad"


def save_picture(figure: Figure, path: Path) -> str:
    """Write a PNG and return it as a data URI for a self-contained page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [" | ".join(cells) for cells in (header, ["---"] * len(header), *rows)]
    return [f"| {line} |" for line in lines]


def write_page(path: Path, package: str, template: str, **content: Any) -> None:
    """Render a package's template into one HTML file without external resources."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("prm.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    write_text(path, environment.get_template(template).render(**content))
