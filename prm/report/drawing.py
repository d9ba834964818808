"""The look of all pictures, and how they are written: as PNG files, and as SVG within pages."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prm.io.tables import write_bytes

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

PERSONAL, UNIFORM, THIRD, PALE = "#2563a8", "#c2703d", "#4c8c5a", "#7fa8d4"
MUTED, INK, PAPER = "#9aa3ad", "#1d2329", "#fffffe"  # not the plain white of the text on a heat map
WIDTH = 4.8  # inches: two pictures stand side by side on a page, and a telephone shows one with readable text
# the colours of `templates/style.css`, which has others for a dark screen
_VARIABLES = {
    PERSONAL: "--personal", UNIFORM: "--uniform", THIRD: "--third", PALE: "--pale",
    MUTED: "--faint", INK: "--ink", PAPER: "--paper",
}  # fmt: skip
_STYLE: "dict[RcKeyType, object]" = {
    "axes.edgecolor": MUTED, "axes.facecolor": PAPER, "axes.labelcolor": INK, "axes.labelsize": 9.5,
    "axes.spines.right": False, "axes.spines.top": False, "axes.titlesize": 10.5,
    "figure.constrained_layout.w_pad": 0.1, "figure.facecolor": PAPER,
    "font.size": 9.5, "legend.fontsize": 9.5, "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "prm",
    "text.color": INK, "text.parse_math": False, "xtick.color": MUTED, "xtick.labelcolor": INK, "xtick.labelsize": 9,
    "ytick.color": MUTED, "ytick.labelcolor": INK, "ytick.labelsize": 9,
}  # fmt: skip
_CUT = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
_PLACES = re.compile(r' (?:d|x|y|width|height|transform|points|viewBox)="[^"]*"')

drawn = matplotlib.rc_context(_STYLE)  # a decorator of functions that draw a picture


def save_picture(figure: Figure, path: Path) -> Markup:
    """Write a PNG file, and return the picture as SVG for a page."""
    buffer = io.BytesIO()
    with _quiet():
        figure.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())
    return svg(figure)


def svg(figure: Figure) -> Markup:
    """The picture as an SVG element for a page: its text is text, its colours are the page's."""
    buffer = io.StringIO()
    with _quiet():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = _CUT.sub("", buffer.getvalue()).replace("xlink:href", "href")
    text = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 width="{96 * figure.get_figwidth():.0f}">', text)
    text = re.sub(r'href="data:[^"]*"', lambda image: "".join(image[0].split()), text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every picture
    text = re.sub(r' style="[^"]*"', lambda style: _with_variables(style[0]), text)
    text = _PLACES.sub(lambda place: re.sub(r"(\.\d\d)\d+", r"\1", place[0]), text)
    return Markup(re.sub(r"\s*\n\s*", "\n", text).strip())


def whole_numbers(axes: Axes, which: str) -> None:
    """Ticks of the axis `x` or `y` at whole numbers alone, as befits people and comparisons."""
    axes.locator_params(axis=which, integer=True)  # type: ignore[arg-type]


def shortened(user: str, maximum: int = 24) -> str:
    """An id on one line, cut if it is long."""
    text = " ".join(user.split())
    return text if len(text) <= maximum else text[: maximum - 1] + "\u2026"


def _with_variables(style: str) -> str:
    for colour, name in _VARIABLES.items():
        style = style.replace(colour, f"var({name})")
    return style


@contextmanager
def _quiet() -> Iterator[None]:
    """Draw in our style, without warnings of scripts that matplotlib's font lacks: a browser has others."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
