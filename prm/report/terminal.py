"""Tables and text on the terminal."""

import os
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from prm.report.section import Section

_MAX_ID_LENGTH = 12  # characters; a table of eight figures leaves no more in 80 columns
_ANY_WIDTH = 10_000


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], numeric: int = 1) -> Group:
    """A titled terminal table whose columns from `numeric` on are right-aligned.

    Long ids, in a first column called person, are cut in the middle. A table wider than the terminal has no lines.
    """
    out = Table(show_header=any(header))
    for i, name in enumerate(header):
        out.add_column(name, justify="right" if i >= numeric else "left", overflow="fold")
    has_ids = header[:1] == ("user",)
    ids = _shortened([row[0] for row in rows]) if has_ids else {}
    for row in rows:
        out.add_row(*(Text(ids.get(cell, cell) if i == 0 else cell) for i, cell in enumerate(row)))
    console = _Console()
    if console.measure(out, options=console.options.update(max_width=_ANY_WIDTH)).maximum > console.width:
        out.box, out.padding, out.show_edge = box.SIMPLE_HEAD, 0, False
    return Group(Text(title, style="bold"), out)


def _shortened(users: Sequence[str]) -> dict[str, str]:
    """Long ids without their middle: the shortest length at which all of them differ."""
    for length in range(_MAX_ID_LENGTH, max(map(len, users), default=0) + 1):
        ends = (length - length // 2 - 1, length // 2)
        short = {u: u if len(u) <= length else f"{u[: ends[0]]}\u2026{u[-ends[1] :]}" for u in users}
        if len(set(short.values())) == len(short):
            return short
    return {}


class _Console(Console):
    """A file or pipe has lines of any length, a terminal its width; `COLUMNS` overrides both."""

    def __init__(self) -> None:
        super().__init__()
        if not (self.is_terminal or self.is_jupyter or "COLUMNS" in os.environ):
            self.width = _ANY_WIDTH

    def on_broken_pipe(self) -> None:
        """Raise `BrokenPipeError`, which commands handle; rich would end the process."""
        raise BrokenPipeError


def show(*items: Any) -> None:
    """Print tables and text to the terminal."""
    console = _Console()
    for item in items:
        console.print(item, markup=False, highlight=False) if isinstance(item, str) else console.print(item)


def laid_out(sections: Sequence[Section]) -> list[Any]:
    """Each section's table, or its title if it has no rows, with its notes; in one line why a section is absent."""
    items: list[Any] = []
    for part in sections:
        if part.absent:
            items += ["", f"{part.title}: {'; '.join(part.notes)}"] if part.notes else []
            continue
        body = table(part.title, part.header, part.rows) if part.rows else Text(part.title, style="bold")
        items += ["", body, *part.notes]
    return items
