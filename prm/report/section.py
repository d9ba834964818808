"""A titled table, as the terminal and pages show it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A table: `rows`, perhaps none, each as long as `header`, and `notes` below the table."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
