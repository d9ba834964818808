"""Values of files: what JSON holds, and a row of a table as it was read, whatever the file."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | None"  # `bool` is an `int`


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: its values, or why they could not be read.

    Args:
        origin: its file and line ("log.csv, line 7").
        values: values by column, of any type that its file has; `None` for a row that could not be read.
        fault: what is wrong with it, or "".
        raw: the raw text of a row that could not be read.
        is_text: true if the format has no types, so that every value is text (CSV).
        made: columns that a format made of others, and the file lacks.
    """

    origin: str
    values: Mapping[str, object] | None
    fault: str = ""
    raw: str = ""
    is_text: bool = False
    made: Set[str] = frozenset()

    @property
    def columns(self) -> list[str]:
        """The columns that the file has in this row."""
        return [name for name in self.values or () if name not in self.made]
