"""Tables and text on the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from prm.describe.words import Section


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], numeric: int = 1) -> Group:
    """A titled terminal table whose columns from `numeric` on are right-aligned."""
    out = Table(show_header=any(header))
    for i, name in enumerate(header):
        out.add_column(name, justify="right" if i >= numeric else "left", overflow="fold")
    for row in rows:
        out.add_row(*(Text(cell) for cell in row))
    return Group(Text(title, style="bold"), out)


def show(*items: Any) -> None:
    """Print tables and text to the terminal."""
    console = Console()
    for item in items:
        console.print(item, markup=False, highlight=False) if isinstance(item, str) else console.print(item)


def laid_out(found: Sequence[Section]) -> list[Any]:
    """Each section's table, or its title alone, with its notes."""
    items: list[Any] = []
    for part in found:
        body = table(part.title, part.header, part.rows) if part.rows else Text(part.title, style="bold")
        items += ["", body, *part.notes]
    return items
