"""Draws the diagrams of the concept pages as SVG: `python docs/_pictures/draw.py` writes docs/_static/*.svg."""

import math
from collections.abc import Sequence
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "_static"
INK, MUTED, PERSONAL, GENERIC, SHARED = "#24292f", "#8a929a", "#2a6fb0", "#c96f2e", "#e9edf1"
WIDTH = 760


def text(
    x: float, y: float, words: str, size: int = 14, color: str = INK, anchor: str = "middle", bold: bool = False
) -> str:
    """A line of text."""
    weight = ' font-weight="600"' if bold else ""
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}"{weight}>{words}</text>'


def box(
    x: float, y: float, w: float, h: float, words: str = "", fill: str = SHARED, color: str = INK, size: int = 13
) -> str:
    """A rounded box with a line of text in its middle."""
    shape = f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="5" fill="{fill}"/>'
    return shape + (text(x + w / 2, y + h / 2 + size * 0.35, words, size, color) if words else "")


def user(x: float, y: float, w: float, h: float, words: str) -> str:
    """A box for a user's own parameters."""
    return box(x, y, w, h, words, PERSONAL, "#fff")


def generic(x: float, y: float, w: float, h: float, words: str) -> str:
    """A box for the generic user's parameters."""
    return box(x, y, w, h, words, GENERIC, "#fff")


def arrow(x1: float, y1: float, x2: float, y2: float, color: str = MUTED) -> str:
    """A line with a head at its end."""
    angle, size = math.atan2(y2 - y1, x2 - x1), 7
    left, right = ((x2 - size * math.cos(angle + d), y2 - size * math.sin(angle + d)) for d in (0.45, -0.45))
    line = f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="1.5"/>'
    return (
        line + f'<polygon points="{x2},{y2} {left[0]:.1f},{left[1]:.1f} {right[0]:.1f},{right[1]:.1f}" fill="{color}"/>'
    )


def curve(points: Sequence[tuple[float, float]], color: str) -> str:
    """A line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.5"/>'


def write(name: str, height: int, *parts: str) -> None:
    """Write a picture of the common width."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    font = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'
    body = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>' + "\n".join(parts)
    (OUT / f"{name}.svg").write_text(f"{head} {font}>\n{body}\n</svg>\n", encoding="utf-8")


def user_models() -> None:
    """The four kinds of user model, side by side."""
    parts = []
    for i, name in enumerate(("uniform", "individual", "cluster", "bayes")):
        x = 20 + i * 185
        parts += [text(x + 82, 28, name, 16, bold=True), box(x, 42, 165, 178, fill="#f7f9fb")]
    x = 20
    parts += [
        generic(x + 42, 66, 80, 28, "e"),
        text(x + 82, 130, "the same", 13),
        text(x + 82, 148, "for everyone", 13),
    ]
    x = 205
    parts += [generic(x + 42, 66, 80, 28, "e_0")]
    for j, who in enumerate(("anna", "ben", "zoe")):
        parts += [user(x + 6 + j * 53, 132, 48, 26, who), arrow(x + 82, 94, x + 30 + j * 53, 130)]
    parts += [text(x + 82, 190, "e_0 + an offset", 13), text(x + 82, 208, "for each user", 13)]
    x = 390
    for j in range(3):
        parts.append(generic(x + 12 + j * 50, 66, 42, 28, f"c{j + 1}"))
    for j in range(3):
        parts.append(arrow(x + 33 + j * 50, 94, x + 82, 130))
    parts += [
        user(x + 27, 132, 110, 26, "anna's weights"),
        text(x + 82, 190, "K centres,", 13),
        text(x + 82, 208, "mixed by weights", 13),
    ]
    x = 575
    parts.append(generic(x + 42, 66, 80, 28, "e_0"))
    for j, (who, wide) in enumerate((("many", 7.0), ("few", 16.0))):
        middle = x + 45 + j * 75
        bell = [(middle + t, 165 - 42 * (7 / wide) * math.exp(-0.5 * (t / wide) ** 2)) for t in range(-34, 35, 2)]
        parts += [curve(bell, PERSONAL), text(middle, 181, who, 11, MUTED)]
    parts += [text(x + 82, 208, "e_0 + uncertain offsets", 13)]
    write("user-models", 236, *parts)


def objective() -> None:
    """One comparison, two terms."""
    write(
        "objective",
        210,
        box(12, 70, 200, 66, fill="#f7f9fb"),
        text(112, 96, "anna prefers", 13),
        text(112, 117, "response 1 to response 2", 13),
        arrow(212, 90, 294, 56),
        arrow(212, 116, 294, 152),
        user(297, 34, 186, 44, "read with anna"),
        generic(297, 130, 186, 44, "read with the generic user"),
        arrow(484, 56, 545, 56),
        arrow(484, 152, 545, 152),
        box(550, 34, 190, 44, "alpha * log loss"),
        box(550, 130, 190, 44, "(1 - alpha) * log loss"),
        text(645, 107, "+", 20),
        text(390, 24, "what anna likes", 12, MUTED),
        text(390, 194, "what users have in common", 12, MUTED),
    )


def posterior() -> None:
    """A user's offset: less uncertain with each comparison."""
    parts = [
        f'<line x1="60" y1="190" x2="700" y2="190" stroke="{MUTED}"/>',
        text(380, 216, "how far a user is from the average", 13, MUTED),
    ]
    for middle, wide, color in (
        (0.0, 1.0, GENERIC),
        (0.6, 0.6, "#7aa7d0"),
        (1.15, 0.25, PERSONAL),
    ):
        points = [
            (380 + 110 * t, 190 - 42 / wide * math.exp(-0.5 * ((t - middle) / wide) ** 2))
            for t in [k / 20 - 2.9 for k in range(117)]
        ]
        parts.append(curve(points, color))
    parts += [text(170, 130, "no comparisons:", 13, GENERIC), text(170, 148, "the prior", 13, GENERIC)]
    parts += [text(350, 98, "5 comparisons", 13, "#4a7fb0"), text(590, 50, "50 comparisons", 13, PERSONAL)]
    write("posterior", 232, *parts)


def forms() -> None:
    """Linear head, suffix and prefix: what is read for two users."""
    parts = []
    rows = (("linear head", 24), ("suffix", 104), ("prefix", 184))
    for name, y in rows:
        parts.append(text(20, y + 34, name, 15, anchor="start", bold=True))
    y = 24
    parts += [box(140, y, 300, 56, "prompt + response, read once"), arrow(440, y + 28, 480, y + 28)]
    for j, who in enumerate(("anna", "ben")):
        parts += [
            user(485, y + j * 30, 110, 26, f"head of {who}"),
            text(610, y + 18 + j * 30, "→ reward", 13, anchor="start"),
        ]
    y = 104
    parts.append(box(140, y, 300, 56, "prompt + response, read once"))
    for j, who in enumerate(("anna", "ben")):
        parts += [
            user(445, y + j * 30, 80, 26, who),
            text(610, y + 18 + j * 30, "→ reward", 13, anchor="start"),
            box(530, y + j * 30, 65, 26, "head"),
        ]
    y = 184
    for j, who in enumerate(("anna", "ben")):
        parts += [user(140, y + j * 32, 80, 28, who), box(225, y + j * 32, 300, 28, "prompt + response, read again")]
        parts += [text(610, y + 19 + j * 32, "→ reward", 13, anchor="start"), box(530, y + j * 32, 65, 28, "head")]
    write("forms", 264, *parts)


def sharing() -> None:
    """Sequences that begin alike, as a tree."""
    parts = [text(150, 24, "asked for: three sequences", 13, MUTED), text(575, 24, "read: each part once", 13, MUTED)]
    for i, name in enumerate(("response 1", "response 2", "response 3")):
        y = 44 + i * 44
        parts += [box(20, y, 80, 32, "template"), box(104, y, 100, 32, "prompt"), box(208, y, 84, 32, name, "#d3e3f2")]
        parts += [arrow(578, 104, 626, y + 16), box(630, y, 100, 32, name, "#d3e3f2")]
    parts += [arrow(310, 104, 370, 104), box(390, 88, 80, 32, "template"), box(474, 88, 100, 32, "prompt")]
    write("sharing", 190, *parts)


def baselines() -> None:
    """How an evaluation is read: the personal model against the best of its baselines."""
    rows = (
        ("personal", 80.5, 78.4, 82.8, PERSONAL),
        ("generic user", 55.7, 48.0, 63.3, GENERIC),
        ("uniform, tuned", 55.7, 47.8, 63.5, GENERIC),
        ("users shuffled", 48.2, 43.5, 53.0, MUTED),
        ("longest answer", 45.7, 35.9, 54.9, MUTED),
        ("length sign per user", 59.2, 51.5, 68.2, MUTED),
    )
    at = lambda value: 200 + (value - 30) * 8.6  # noqa: E731
    parts = [f'<line x1="{at(50)}" y1="14" x2="{at(50)}" y2="214" stroke="{MUTED}" stroke-dasharray="3 4"/>']
    for i, (name, value, low, high, color) in enumerate(rows):
        y = 30 + i * 34
        parts += [text(180, y + 5, name, 14, anchor="end")]
        parts.append(f'<line x1="{at(low)}" y1="{y}" x2="{at(high)}" y2="{y}" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<circle cx="{at(value)}" cy="{y}" r="6" fill="{color}"/>')
    parts += [text(at(value), 240, f"{value}%", 12, MUTED) for value in (30, 40, 50, 60, 70, 80, 90)]
    parts += [
        text(735, 188, "the gap to the best", 12, MUTED, "end"),
        text(735, 204, "baseline counts", 12, MUTED, "end"),
    ]
    parts.append(arrow(at(59.2), 217, at(80.5), 217, INK) + arrow(at(80.5), 217, at(59.2), 217, INK))
    write("baselines", 256, *parts)


if __name__ == "__main__":
    for draw in (user_models, objective, posterior, forms, sharing, baselines):
        draw()
