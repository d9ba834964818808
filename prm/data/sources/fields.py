"""One row of a log, read field by field under our names."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from difflib import SequenceMatcher
from typing import Any

from prm.config import FeedbackConfig
from prm.data.comparison import moment_of, require_number, require_text
from prm.errors import DataError, closest, shown
from prm.io.tables import KeyTwiceError, Row, kind, parse_json, plain

COMMON = ("user_id", "user_text", "weight", "time", "conversation_id", "metadata")
_ANONYMOUS = "anonymous"
# columns by which a kind of feedback that is not the given one is known
_TELLING = {"rating": "ratings", "label": "thumbs", "ranks": "rankings", "responses": "picks", "rejected": "pairs"}


def columns_named(settings: Mapping[str, Any]) -> set[str]:
    """The log's own columns that settings name under `columns` and `metadata`; either may be missing, or null."""
    columns = (settings.get("columns") or {}).values()
    lists = [[column] if isinstance(column, str) else column for column in columns]
    return {name for names in [*lists, settings.get("metadata") or []] for name in names}


class Columns:
    """The columns of a log: which are read, by the settings, and which are passed over.

    Args:
        config: names the columns that are called otherwise.
        known: the fields that this kind of feedback has.
        needed: those that its rows cannot do without, beside the judge.

    Raises `DataError` where the settings name a field that there is not.
    """

    def __init__(self, config: FeedbackConfig, known: Sequence[str], needed: Sequence[str]):
        self.config, self.known = config, (*known, *COMMON)
        self.needed = needed if config.anonymous else ("user_id", *needed)
        for name in config.columns:
            if name not in self.known:
                fields = ", ".join(self.known)
                raise DataError(f"config key 'data.columns' names {name!r}, but '{config.source}' has {fields}")
        given = [[column] if isinstance(column, str) else column for column in config.columns.values()]
        self._named = dict.fromkeys([*(name for names in given for name in names), *config.metadata])
        self.read = self._named.keys() | {name for name in self.known if name not in config.columns}
        self._looked_at: dict[tuple[str, ...], tuple[list[str], str]] = {}

    def unread(self, names: tuple[str, ...]) -> list[str]:
        """Those of a row's columns that nothing is taken from. Raises `DataError` where one looks misspelt."""
        if names not in self._looked_at:  # rows are alike, and the comparison of names is slow
            self._looked_at[names] = self._look_at(names)
        found, fault = self._looked_at[names]
        if fault:
            raise DataError(fault)
        return found

    def absent(self) -> list[str]:
        """Columns that the settings name and no row had."""
        return [name for name in self._named if not any(name in names for names in self._looked_at)]

    def present(self) -> list[str]:
        """Columns that some row had."""
        return list(dict.fromkeys(name for names in self._looked_at for name in names))

    def _look_at(self, names: tuple[str, ...]) -> tuple[list[str], str]:
        found = [name for name in names if name not in self.read]
        for name in found:
            meant = closest(name, self.known, cutoff=0.8)
            if meant and meant not in names and meant not in self.config.columns and not _is_another(name, meant):
                other = "where it is another thing, name it under 'data.metadata'"
                return found, f"field {shown(name)} is not known; did you mean '{meant}'? {other}"
        return found, ""


class Fields:
    """The fields of one row, by our names. The row must have values."""

    def __init__(self, row: Row, columns: Columns):
        assert row.values is not None
        self.row, self.values, self._config, self._needed = row, row.values, columns.config, columns.needed
        self._read = columns.read
        self.remarks: list[str] = []

    def remark(self, text: str) -> None:
        """Say how a value of the row was read that could have been read otherwise."""
        self.remarks.append(text)

    def has(self, name: str) -> bool:
        """True where the row gives the field a value."""
        return not _is_missing(self._get(name))

    def texts_called_like(self, name: str) -> list[str]:
        """Columns that nothing is taken from, whose names hold the field's name and another word, and which are prose.

        An id (`prompt_id`) has no white space; what has some may be the field itself (`prompt_text`).
        """
        texts = [column for column, value in self.values.items() if isinstance(value, str) and len(value.split()) > 1]
        return [column for column in texts if column not in self._read and _adds_words(column, name)]

    def is_blank(self, name: str) -> bool:
        """True where the row has the column, but nothing in it."""
        return not self.has(name) and all(column in self.values for column in self._columns(name))

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
        return require_number(name, self.from_text(name, value))

    def from_text(self, name: str, value: Any) -> Any:
        """The value, or the number that its text shows where the file has nothing but text (CSV)."""
        if not self.row.is_text or not isinstance(value, str):
            return value
        try:
            return float(value)
        except ValueError:
            raise DataError(f"'{name}' must be a number, got {shown(value)}") from None

    def texts(self, name: str) -> list[str]:
        """The field as a list of texts; a JSON list where the file has nothing but text (CSV)."""
        value = self.items(name)
        if not isinstance(value, list | tuple):
            raise DataError(f"'{name}' must be a list of texts, got {kind(value)}")
        for i, text in enumerate(value):
            require_text(f"{name}[{i}]", text)
        return [*value]

    def conversation(self, name: str) -> Any:
        """Text, or messages as a list; in CSV, JSON of messages is read as such."""
        value = self.get(name)
        if self.row.is_text and isinstance(value, str) and value.startswith("[") and '"role"' in value:
            found = _json_list(value)
            if isinstance(found, list) and found and all(isinstance(m, dict) and "role" in m for m in found):
                return found
        return value

    def items(self, name: str) -> Any:
        """The field, from the JSON that stands for a list where the file has nothing but text (CSV)."""
        value = self.get(name)
        return _json_list(value) if self.row.is_text and isinstance(value, str) else value

    def gathered(self, name: str) -> list[str] | None:
        """The columns that the field is gathered from, "" for one that is empty here; `None` if it is one column."""
        columns = self._config.columns.get(name)
        if not isinstance(columns, list):
            return None
        return ["" if _is_missing(self.values.get(column)) else column for column in columns]

    def shown_id(self) -> str | None:
        """The judge as text where there is one of any type, for the account of a bad row."""
        return str(self.get("user_id")) if self.has("user_id") else None

    def user_id(self) -> str:
        """The judge, as text; whole numbers are taken as the text that shows them."""
        if not self.has("user_id") and self._config.anonymous:
            return _ANONYMOUS
        return _id("user_id", self.get("user_id"))

    def common(self) -> dict[str, Any]:
        """user_text, weight, time, conversation_id and metadata. Raises `DataError` for what `Comparison` would refuse,
        while the row is known."""
        text = self._get("user_text")
        if _is_missing(text):
            text = ""
        elif text != "":
            require_text("user_text", text)
        if (weight := self.number("weight", 1.0)) <= 0.0:
            raise DataError(f"'weight' must be greater than 0, got {weight}")
        where = _id("conversation_id", self.get("conversation_id")) if self.has("conversation_id") else None
        common: dict[str, Any] = {"user_text": text, "weight": weight, "time": self._time()}
        return common | {"conversation_id": where, "metadata": self._metadata()}

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
            number = None
            with suppress(ValueError):
                number = float(value) if self.row.is_text else None
            if number is None:
                moment_of(value)
                return value
            return require_number("time", number)
        return require_number("time", value)

    def _metadata(self) -> dict[str, Any]:
        given = self._get("metadata")
        if _is_missing(given):
            given = {}
        if self.row.is_text and isinstance(given, str):
            given = _from_json(given)
        if not isinstance(given, Mapping):
            raise DataError(f"'metadata' must be an object, got {kind(given)}")
        found = {name: plain(self.values[name]) for name in self._config.metadata if name in self.values}
        return {**{str(key): plain(value) for key, value in given.items()}, **found}

    def _columns(self, name: str) -> list[str]:
        column = self._config.columns.get(name, name)
        return [column] if isinstance(column, str) else column

    def _missing(self, name: str) -> str:
        """What to say of a field that is missing: also which others are, so that all are mended at once."""
        if self.is_blank(name):
            return f"field {self._named(name)} is missing: there is nothing in it"
        names = [n for n in self._needed if n == name or self._is_absent(n)]
        names = names if name in names else [*names, name]
        present = ", ".join(shown(c) for c in list(self.values)[:20]) or "nothing"
        value = {"responses": "'[A,B]'"}  # gathered from several columns, as logs mostly have them
        flags = " ".join(f"--data.columns.{n} {value.get(n, 'COLUMN')}" for n in names)
        one = len(names) == 1
        missing = f"field{'' if one else 's'} {', '.join(map(self._named, names))} {'is' if one else 'are'} missing"
        hint = (
            f"; the row has {present}: name the right {'one' if one else 'ones'} ({flags}, or 'data.columns' in a YAML)"
        )
        source = next((kind for column, kind in _TELLING.items() if column in self.values), self._config.source)
        if source != self._config.source:
            hint += f", or give 'data.source: {source}'"
        if "user_id" in names:
            hint += ", or give 'data.anonymous: true' where the log names nobody"
        return missing + hint

    def _named(self, name: str) -> str:
        column = self._config.columns.get(name, name)
        return f"'{name}'" + (f" (column {shown(column)})" if column != name else "")

    def _is_absent(self, name: str) -> bool:
        """True where the row has no column for a field that it cannot do without."""
        if name == "response" and "completion" in self.values:
            return False
        if name == "prompt" and all(side in self.values for side in ("chosen", "rejected")):
            return False  # both may begin with it
        return not any(column in self.values for column in self._columns(name))


def _is_another(name: str, known: str) -> bool:
    """True for `conversation_hash` beside `conversation_id`, or a further word: a typo changes letters of words."""
    words, field = _words(name), _words(known)
    changed = [SequenceMatcher(None, a, b).ratio() < 0.5 for a, b in zip(words, field)]
    return _adds_words(name, known) or (len(words) == len(field) > 1 and any(changed))


def _adds_words(name: str, known: str) -> bool:
    """True for `prompt_id` or `rawPrompt` beside `prompt`."""
    words, field = _words(name), _words(known)
    run = len(field)
    return len(words) > run and any(words[i : i + run] == field for i in range(len(words) - run + 1))


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)]


def text_by_id(row: Row, name: str) -> dict[str, str]:
    """A text under the id in the column `name`, from a public set's list of them. Raises `DataError` with the line."""
    try:
        if row.values is None:
            raise DataError(row.fault)
        for column in (name, "text"):
            require_text(column, row.values.get(column))
    except DataError as error:
        raise DataError(f"{row.origin}: {error}") from None
    return {row.values[name]: row.values["text"]}


def text_or_blank(name: str, value: Any) -> str:
    """The value, which may be blank. Raises `DataError` naming the field where it is no text."""
    if not isinstance(value, str) or value.strip():
        require_text(name, value)
    return str(value)


def _id(name: str, value: Any) -> str:
    """An id as text; whole numbers are taken as the text that shows them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        raise DataError(f"'{name}' is the number {value}; ids are text or whole numbers")
    require_text(name, value)
    return str(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _from_json(text: str) -> Any:
    """The value, or the text itself where it is no JSON. Raises `DataError` for a key given twice."""
    try:
        return parse_json(text)
    except KeyTwiceError as error:
        raise DataError(str(error)) from None
    except ValueError:
        return text


def _json_list(text: str) -> Any:
    found = _from_json(text)
    return found if isinstance(found, list) else text
