"""A row of a table as it was read, whatever the file."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: its values, or why they could not be read.

    Args:
        origin: its file and line ("log.csv, line 7").
        values: values by column; `None` for a row that could not be read.
        fault: what is wrong with it, or "".
        raw: the raw text of a row that could not be read.
        is_text: true if the format has no types, so that every value is text (CSV).
    """

    origin: str
    values: dict[str, Any] | None
    fault: str = ""
    raw: str = ""
    is_text: bool = False
