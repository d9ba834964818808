"""A titled table, as the terminal and pages show it."""

import re
from dataclasses import dataclass

_FIGURE = re.compile(r"-?|[<>~+-]? ?[\d.,]+%?(?: ?[±\[(,*].*| )?")  # a figure, perhaps with what belongs to it


@dataclass(frozen=True)
class Section:
    """A table: `rows`, perhaps none, each as long as `header`, and `notes` below the table.

    `absent` marks what could not be computed or was not asked for; the notes say why. A page only lists it.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    absent: bool = False

    @property
    def text_columns(self) -> frozenset[int]:
        """Columns that hold words: the first, and all in which not every cell is a figure or a dash."""
        columns = enumerate(zip(*self.rows, strict=True))
        return frozenset(i for i, cells in columns if i == 0 or not all(map(_FIGURE.fullmatch, cells)))

    @property
    def is_sortable(self) -> bool:
        """Whether rows mean the same in any order: a header, three rows or more, and a name for each of them."""
        names = [row[0] for row in self.rows]
        return bool(any(self.header) and len(names) > 2 and all(names) and len(set(names)) == len(names))
