"""One row of a log, read field by field under our names."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from prm.comparison import require_number, require_text
from prm.config import FeedbackConfig
from prm.errors import DataError
from prm.files import Row, kind, plain

COMMON = ("user_id", "user_text", "weight", "time", "metadata")
_ANONYMOUS = "anonymous"


class Fields:
    """The fields of one row, by our names.

    Args:
        row: must have values.
        config: names the columns that are called otherwise.
        known: the fields that this kind of feedback has.

    Raises `DataError` for a column that looks like a misspelt field.
    """

    def __init__(self, row: Row, config: FeedbackConfig, known: Sequence[str]):
        assert row.values is not None
        self.row, self.values, self._config = row, row.values, config
        self.known = (*known, *COMMON)
        for name in self.unread():
            meant = difflib.get_close_matches(name, self.known, n=1, cutoff=0.8)
            if meant and meant[0] not in self.values and meant[0] not in config.columns:
                raise DataError(f"field '{name}' is not known; did you mean '{meant[0]}'?")

    def unread(self) -> list[str]:
        """Columns that nothing is taken from."""
        columns = self._config.columns
        read = {name for name in self.known if name not in columns} | set(self._config.metadata)
        for column in columns.values():
            read |= {column} if isinstance(column, str) else set(column)
        return [name for name in self.values if isinstance(name, str) and name not in read]

    def has(self, name: str) -> bool:
        """True where the row gives the field a value."""
        return not _is_missing(self._get(name))

    def is_blank(self, name: str) -> bool:
        """True where the row has the column, but nothing in it."""
        return self._config.columns.get(name, name) in self.values and not self.has(name)

    def get(self, name: str) -> Any:
        """The field as the log gives it. Raises `DataError` where it is missing."""
        value = self._get(name)
        if _is_missing(value):
            raise DataError(self._missing(name))
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """The field as a number; text only where the file has nothing else (CSV). Raises `DataError`."""
        if default is not None and not self.has(name):
            return default
        value = self.get(name)
        if self.row.is_text:
            try:
                value = float(value)
            except ValueError:
                raise DataError(f"'{name}' must be a number, got {value!r}") from None
        return require_number(name, value)

    def texts(self, name: str) -> list[str]:
        """The field as a list of texts; a JSON list where the file has nothing but text (CSV)."""
        value = self.get(name)
        if self.row.is_text and isinstance(value, str):
            value = _json_list(value)
        if not isinstance(value, list | tuple):
            raise DataError(f"'{name}' must be a list of texts, got {kind(value)}")
        for i, text in enumerate(value):
            require_text(f"{name}[{i}]", text)
        return list(value)

    def conversation(self, name: str) -> Any:
        """Text, or messages as a list; in CSV, JSON of messages is read as such."""
        value = self.get(name)
        if self.row.is_text and value.startswith("["):
            found = _json_list(value)
            if isinstance(found, list) and found and all(isinstance(m, dict) and "role" in m for m in found):
                return found
        return value

    def json(self, name: str) -> Any:
        """The field, from the JSON that stands for it in a CSV."""
        return _json(self.get(name))

    def shown_id(self) -> str | None:
        """The judge as text where there is one of any type, for the account of a bad row."""
        return str(self.get("user_id")) if self.has("user_id") else None

    def user_id(self) -> str:
        """The judge, as text; whole numbers are taken as the text that shows them."""
        if not self.has("user_id") and self._config.anonymous:
            return _ANONYMOUS
        value = self.get("user_id")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, float):
            raise DataError(f"'user_id' is the number {value}; ids are text or whole numbers")
        require_text("user_id", value)
        return str(value)

    def common(self) -> dict[str, Any]:
        """user_text, weight, time and metadata, as `Comparison` takes them."""
        text = self._get("user_text")
        return {
            "user_text": "" if _is_missing(text) else text,
            "weight": self.number("weight", 1.0),
            "time": self._time(),
            "metadata": self._metadata(),
        }

    def _get(self, name: str) -> Any:
        column = self._config.columns.get(name, name)
        if isinstance(column, str):
            return self.values.get(column)
        found = [self.values.get(c) for c in column]
        return [value for value in found if not _is_missing(value)] or None

    def _time(self) -> str | float | None:
        value = self._get("time")
        if _is_missing(value):
            return None
        if isinstance(value, date):  # datetime is one too
            return value.isoformat()
        if isinstance(value, str):
            try:
                return require_number("time", float(value)) if self.row.is_text else value
            except ValueError:
                return value
        return require_number("time", value)

    def _metadata(self) -> dict[str, Any]:
        given = self._get("metadata")
        if _is_missing(given):
            given = {}
        if self.row.is_text and isinstance(given, str):
            given = _json(given)
        if not isinstance(given, Mapping):
            raise DataError(f"'metadata' must be an object, got {kind(given)}")
        found = {name: plain(self.values[name]) for name in self._config.metadata if name in self.values}
        return {**{str(key): plain(value) for key, value in given.items()}, **found}

    def _missing(self, name: str) -> str:
        column = self._config.columns.get(name, name)
        named = f" (column {column!r})" if column != name else ""
        present = ", ".join(repr(c) for c in self.values) or "none"
        hint = f"; the row has {present}: name the right one in 'data.columns'"
        if name == "user_id":
            hint += ", or give 'data.anonymous: true' where the log names nobody"
        return f"field '{name}'{named} is missing{hint}"


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _json_list(text: str) -> Any:
    found = _json(text)
    return found if isinstance(found, list) else text
