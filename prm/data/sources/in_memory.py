"""Logs that are in memory: comparisons, dicts, a `datasets` data set or a pandas frame, row by row as from a file."""

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Literal, Protocol, runtime_checkable

from prm.config import FeedbackConfig
from prm.data.arguments import require_list
from prm.data.comparison import Comparison, require_text
from prm.data.sources.fields import Columns, Fields
from prm.data.sources.kinds import pairs
from prm.errors import DataError, PrmError
from prm.io.rows import Row
from prm.io.tables import kind


@runtime_checkable
class _Frame(Protocol):
    """What is read of a pandas `DataFrame`."""

    def to_dict(self, orient: Literal["records"], /) -> list[dict[object, object]]: ...

    def notna(self) -> "_Frame": ...


def rows_of(log: object, argument: str = "log") -> tuple[str, list[Row] | None]:
    """(the path of a log in a file, `None`) or, of a log in memory, what `rows_in_memory` returns."""
    return (str(log), None) if isinstance(log, str | PathLike) else rows_in_memory(log, argument)


def rows_in_memory(log: object, argument: str = "log") -> tuple[str, list[Row]]:
    """(what the log is, in a word, its rows).

    Args:
        log: a list or another iterable of `Comparison` or of dicts, a `datasets.Dataset`, or a pandas `DataFrame`,
            whose missing values are left out.
        argument: its name where the caller gave it.

    Raises `PrmError` for anything else, naming its type, for a `DatasetDict`, which has several splits, and for a log
    without rows.
    """
    name = type(log).__name__
    if isinstance(log, Mapping):  # also a DatasetDict
        raise PrmError(f"'{argument}' is a {name} of {', '.join(map(repr, log))}: pass one of them")
    if isinstance(log, str | bytes) or not isinstance(log, Iterable):
        raise PrmError(
            f"'{argument}' must be a path, a list of Comparison or of dicts, a datasets.Dataset or a pandas DataFrame, "
            f"got {kind(log)}"
        )
    values = list(_of_frame(log) if isinstance(log, _Frame) else log)
    if not values:
        needed = "a comparison has a 'user_id', a 'prompt', a 'chosen' and a 'rejected' response"
        raise DataError(f"'{argument}' is an empty {name}: {needed}")
    return name, [_row(name, i, row) for i, row in enumerate(values)]


def require_comparisons(comparisons: Iterable[Comparison | Mapping[str, object]], user: str) -> list[Comparison]:
    """The comparisons as a list; dicts, and rows of a frame, are read as rows of a log, and need no `user_id`.

    Raises `PrmError` naming the first that is not by this user, or neither a `Comparison` nor such a dict.
    """
    require_text("user", user)
    checked = list[Comparison]()
    rows = _of_frame(comparisons) if isinstance(comparisons, _Frame) else require_list("comparisons", comparisons)
    for i, given in enumerate(rows):
        for c in [given] if isinstance(given, Comparison) else _of_row(f"comparisons[{i}]", given, user):
            if c.user_id != user:
                raise PrmError(f"'comparisons[{i}]' is by user {c.user_id!r}, not by {user!r}")
            checked.append(c)
    return checked


def _of_row(place: str, row: Mapping[str, object], user: str) -> list[Comparison]:
    """The comparisons of a row that a caller passed; almost always one."""
    if not isinstance(row, Mapping):
        raise PrmError(f"'{place}' must be a Comparison or a dict of its fields, got {kind(row)}")
    config, values = FeedbackConfig(), {"user_id": user} | _python_values(row)
    columns = Columns(config, pairs.FIELDS, pairs.NEEDED)
    try:
        columns.unread(tuple(values))
        return pairs.parse(Fields(Row(place, values), columns), config, 0)[0]
    except DataError as error:
        raise DataError(f"'{place}': {error}") from None


def _python_values(row: Mapping[str, object]) -> dict[str, object]:
    """A row with Python's values for those of numpy, and `None` for what pandas lacks."""
    return {name: _python_value(value) for name, value in row.items()}


def _python_value(value: object) -> object:
    package, _, _ = type(value).__module__.partition(".")
    if package == "pandas" and type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value.tolist() if package == "numpy" and hasattr(value, "tolist") else value


def _of_frame(frame: _Frame) -> Iterator[dict[str, object]]:
    """Rows of a pandas frame, with Python's own numbers."""
    for row, present in zip(frame.to_dict("records"), frame.notna().to_dict("records"), strict=True):
        yield {str(column): value if present[column] else None for column, value in row.items()}


def _row(name: str, index: int, row: object) -> Row:
    origin = f"row {index} of the {name}"
    if isinstance(row, Comparison):
        return Row(row.origin or origin, row.to_row())
    if isinstance(row, Mapping):
        return Row(origin, _python_values(row))
    return Row(origin, None, f"expected a Comparison or a dict, got {kind(row)}", str(row))
