"""Reads the fields of a log's rows, whatever its columns are called."""

import math
import re
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from datetime import date
from difflib import SequenceMatcher
from typing import TypedDict

from prm.config import FeedbackConfig
from prm.data.comparison import as_id, id_advice, moment_of, require_number, require_text
from prm.data.sources.column_names import words_of
from prm.data.sources.messages import as_messages_of_ours
from prm.errors import DataError, closest, meant, shown
from prm.io.rows import Row
from prm.io.tables import KeyTwiceError, kind, parse_json, plain

COMMON = ("user_id", "user_text", "weight", "time", "conversation_id", "metadata")
_ANONYMOUS = "anonymous"
_NUMBER = re.compile(r"-?\d+(?P<float>\.\d+([eE][+-]?\d+)?|[eE]\+\d+)?")
# columns that show another kind of feedback than the one set
_KIND_BY_COLUMN = {
    "rating": "ratings",
    "label": "thumbs",
    "ranks": "rankings",
    "responses": "picks",
    "rejected": "pairs",
}


class CommonFields(TypedDict, total=False):
    """The fields of a `Comparison` that rows of all kinds of feedback may have."""

    user_text: str
    weight: float
    time: str | float | None
    conversation_id: str | None
    metadata: Mapping[str, object]


def columns_named(settings: Mapping[str, object]) -> set[str]:
    """The log's columns that settings name under `columns` and `metadata`; either key may be missing or null."""
    columns, metadata = settings.get("columns"), settings.get("metadata")
    named = columns.values() if isinstance(columns, Mapping) else ()
    lists = [[name] if isinstance(name, str) else name for name in named]
    kept = metadata if isinstance(metadata, list) else []
    return {name for names in [*lists, kept] for name in names}


class Columns:
    """The columns of a log, and which of them are read.

    Args:
        config: names the columns of fields with another name in the log.
        known: the fields of this kind of feedback.
        needed: the required ones, besides `user_id`.
        also_read: columns that are read besides those of the fields.

    Raises `DataError` if the settings name an unknown field.
    """

    def __init__(
        self, config: FeedbackConfig, known: Sequence[str], needed: Sequence[str], also_read: Set[str] = frozenset()
    ):
        self.config, self.known = config, (*known, *COMMON)
        self.needed = needed if config.anonymous else ("user_id", *needed)
        for name in config.columns:
            if name not in self.known:
                raise DataError(f"config key 'data.columns' {self._unknown(name)}")
        columns = [[column] if isinstance(column, str) else column for column in config.columns.values()]
        self._refuse_read_twice()
        self._named = dict.fromkeys([*(name for names in columns for name in names), *config.metadata])
        self.read = self._named.keys() | {name for name in self.known if name not in config.columns} | also_read
        self._checked: dict[tuple[str, ...], tuple[list[str], str]] = {}

    def unread(self, names: tuple[str, ...]) -> list[str]:
        """The columns of a row that are not read. Raises `DataError` if one looks misspelt."""
        if names not in self._checked:  # most rows have the same columns, and comparing names is slow
            self._checked[names] = self._look_at(names)
        unread, fault = self._checked[names]
        if fault:
            raise DataError(fault)
        return unread

    def absent(self) -> list[str]:
        """Columns that the settings name and no row had."""
        return [name for name in self._named if not any(name in names for names in self._checked)]

    def present(self) -> list[str]:
        """Columns that some row had."""
        return list(dict.fromkeys(name for names in self._checked for name in names))

    def _refuse_read_twice(self) -> None:
        """Raise `DataError` if the settings read a column as two fields."""
        fields = {name: name for name in self.needed if name not in self.config.columns}
        for field, columns in self.config.columns.items():
            for column in [columns] if isinstance(columns, str) else columns:
                other = fields.setdefault(column, field)
                if other != field or (not isinstance(columns, str) and columns.count(column) > 1):
                    both = f"'{other}' and '{field}'" if other != field else f"'{field}' twice"
                    raise DataError(f"config key 'data.columns' reads the column {shown(column)} as {both}")

    def _unknown(self, name: str) -> str:
        """Why a name under `columns` is wrong: often, names are written the other way round, as pandas has them."""
        given = {our: column for our, column in self.config.columns.items() if isinstance(column, str)}
        if given.get(name) in self.known:
            turned = ", ".join(f"{column}: {our}" for our, column in given.items())
            return f"holds OUR_NAME: YOUR_COLUMN, not the other way round: write {{{turned}}}"
        fault = f"names {name!r}, but '{self.config.source}' has {', '.join(self.known)}"
        space = "; put a space after the colon, as in OUR_NAME: YOUR_COLUMN" if ":" in name else ""
        return fault + (space or meant(name, self.known))

    def _look_at(self, names: tuple[str, ...]) -> tuple[list[str], str]:
        unread = [name for name in names if name not in self.read]
        for name in unread:
            meant = closest(name, self.known, cutoff=0.8)
            if meant and meant not in names and meant not in self.config.columns and not _is_another(name, meant):
                column = f" Then name it, as in --data.columns.{meant} {shown(name)};"
                other = f"{column} if it is another field, name it under 'data.metadata'" if self.config.path else ""
                return unread, f"field {shown(name)} is not known; did you mean '{meant}'?{other}"
        return unread, ""


class Fields:
    """The fields of one row, which must have values."""

    def __init__(self, row: Row, columns: Columns):
        assert row.values is not None
        self.row, self.values, self._config, self._needed = row, row.values, columns.config, columns.needed
        self._read = columns.read
        self.remarks: list[str] = []

    def remark(self, text: str) -> None:
        """Record how an ambiguous value of the row was read."""
        self.remarks.append(text)

    def has(self, name: str) -> bool:
        """True if the row has a value for the field."""
        return not _is_missing(self._get(name))

    def texts_called_like(self, name: str) -> list[str]:
        """Unread columns whose name is the field's name and another word, and whose value has several words.

        An id (`prompt_id`) has no white space; a column with white space may be the field itself (`prompt_text`).
        """
        texts = [column for column, value in self.values.items() if isinstance(value, str) and len(value.split()) > 1]
        return [column for column in texts if column not in self._read and _adds_words(column, name)]

    def is_blank(self, name: str) -> bool:
        """True if the row has the column, but no value in it."""
        return not self.has(name) and all(column in self.values for column in self._columns(name))

    def get(self, name: str) -> object:
        """The field's raw value. Raises `DataError` if it is missing."""
        value = self._get(name)
        if _is_missing(value):
            raise DataError(self._missing(name))
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """The field as a number, parsed from text only in formats without types (CSV). Raises `DataError`."""
        if default is not None and not self.has(name):
            return default
        value = self.get(name)
        return require_number(name, self.from_text(name, value))

    def from_text(self, name: str, value: object) -> object:
        """The value; in formats without types (CSV), text is parsed as a number."""
        if not self.row.is_text or not isinstance(value, str):
            return value
        try:
            return float(value)
        except ValueError:
            raise DataError(f"'{name}' must be a number, got {shown(value)}") from None

    def texts(self, name: str) -> list[str]:
        """The field as a list of texts, parsed from JSON in formats without types (CSV)."""
        value = self.items(name)
        if not isinstance(value, list | tuple):
            raise DataError(f"'{name}' must be a list of texts, got {kind(value)}")
        return [require_text(f"{name}[{i}]", text) for i, text in enumerate(value)]

    def conversation(self, name: str) -> object:
        """Text, or messages as a list; in CSV, messages are parsed from JSON. Texts of several columns are joined."""
        value = self.get(name)
        if self.row.is_text and isinstance(value, str) and value.startswith("[") and '"role"' in value:
            messages = _json_list(value)
            if isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages):
                return messages
        if self.gathered(name) and isinstance(value, list) and all(isinstance(text, str) for text in value):
            return "\n".join(value)
        return as_messages_of_ours(value)

    def items(self, name: str) -> object:
        """The field's value; in formats without types (CSV), a list is parsed from JSON."""
        value = self.get(name)
        return _json_list(value) if self.row.is_text and isinstance(value, str) else value

    def gathered(self, name: str) -> list[str] | None:
        """The columns that the field is gathered from, "" for one that is empty in this row; `None` for one column."""
        columns = self._config.columns.get(name)
        if not isinstance(columns, list):
            return None
        return ["" if _is_missing(self.values.get(column)) else column for column in columns]

    def shown_id(self) -> str | None:
        """The user id, of any type, as text for the account of a bad row; `None` if missing."""
        return str(self.get("user_id")) if self.has("user_id") else None

    def user_id(self) -> str:
        """The user id as text; whole numbers are converted."""
        if not self.has("user_id") and self._config.anonymous:
            return _ANONYMOUS
        return as_id("user_id", self.get("user_id"))

    def common(self) -> CommonFields:
        """user_text, weight, time, conversation_id and metadata.

        Raises `DataError` for values that `Comparison` would refuse, while the row is known.
        """
        text = self._get("user_text")
        user_text = "" if _is_missing(text) or text == "" else require_text("user_text", text)
        if (weight := self.number("weight", 1.0)) <= 0.0:
            raise DataError(f"'weight' must be greater than 0, got {weight}")
        conversation = as_id("conversation_id", self.get("conversation_id")) if self.has("conversation_id") else None
        common: CommonFields = {"user_text": user_text, "weight": weight, "time": self._time()}
        return common | {"conversation_id": conversation, "metadata": self._metadata()}

    def _get(self, name: str) -> object:
        column = self._config.columns.get(name, name)
        if isinstance(column, str):
            return self.values.get(column)
        values = [self.values.get(c) for c in column]
        return [value for value in values if not _is_missing(value)] or None

    def _time(self) -> str | float | None:
        value = self._get("time")
        if _is_missing(value):
            return None
        if isinstance(value, date):  # also a datetime
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

    def _metadata(self) -> dict[str, object]:
        metadata = self._get("metadata")
        if _is_missing(metadata):
            metadata = {}
        if self.row.is_text and isinstance(metadata, str):
            metadata = _from_json(metadata)
        if not isinstance(metadata, Mapping):
            raise DataError(f"'metadata' must be an object, got {kind(metadata)}")
        columns = {name: plain(self.values[name]) for name in self._config.metadata if name in self.values}
        return {**{str(key): plain(value) for key, value in metadata.items()}, **columns}

    def _columns(self, name: str) -> list[str]:
        column = self._config.columns.get(name, name)
        return [column] if isinstance(column, str) else column

    def _missing(self, name: str) -> str:
        """A message for a missing field; it names all missing fields, so that they can be fixed at once."""
        if self.is_blank(name):
            return f"field {self.named(name)} is missing: it is empty"
        names = [n for n in self._needed if n == name or self._is_absent(n)]
        names = names if name in names else [*names, name]
        present = ", ".join(shown(c) for c in self.row.columns[:20]) or "nothing"
        value = {"responses": "[A, B]"}  # most logs have one column per response
        columns = ", ".join(f"{n}: {value.get(n, 'COLUMN')}" for n in names)
        one = len(names) == 1
        missing = f"field{'' if one else 's'} {', '.join(map(self.named, names))} {'is' if one else 'are'} missing"
        if not self._config.path:  # a row from Python, which no settings describe
            return f"{missing}; the row has {present}"
        what = "the column" if one else "the columns"
        hint = f"; the row has {present}: name {what} with 'data.columns', as in {{{columns}}}"
        source = next((kind for column, kind in _KIND_BY_COLUMN.items() if column in self.values), self._config.source)
        if source != self._config.source:
            hint += f", or set 'data.source: {source}'"
        elif "chosen" in names and "rejected" in names:
            hint += (
                ". If a row has one response with a rating or a thumb, set 'data.source' to ratings or thumbs; if it "
                "has several responses, to picks or rankings"
            )
        if "user_id" in names:
            hint += ", or set 'data.anonymous: true' if the log names no users"
        misspelt = [c for n in names if n in self._config.columns for c in self._columns(n) if c not in self.values]
        return missing + hint + "".join(meant(column, self.row.columns) for column in misspelt[:1])

    def named(self, name: str) -> str:
        """The field in quotes, with its column in the log if that is called otherwise."""
        column = self._config.columns.get(name, name)
        return f"'{name}'" + (f" (column {shown(column)})" if column != name else "")

    def _is_absent(self, name: str) -> bool:
        """True if the row has no column for a required field."""
        if name == "response" and "completion" in self.values:
            return False
        if name == "prompt" and all(side in self.values for side in ("chosen", "rejected")):
            return False  # both may begin with the prompt
        return not any(column in self.values for column in self._columns(name))


class WholeFloats:
    """Looks for user ids of a text file that a program wrote as floats: "101.0" would be another user than "101"."""

    def __init__(self) -> None:
        self._first, self._other = "", False

    def add(self, user_id: str | None, origin: str) -> None:
        """Look at the id of one row."""
        if user_id is None or self._other or not (number := _NUMBER.fullmatch(user_id)):
            return
        if number["float"] is None or not float(user_id).is_integer():
            self._other = True
        elif not self._first:
            self._first = f"{origin}: 'user_id' is {shown(user_id)}"

    def refuse(self) -> None:
        """Raise `DataError` if every id that is a number was written as a whole float."""
        if self._first and not self._other:
            raise DataError(
                f"{self._first}, and so are all ids that are numbers: they were whole before the file was written"
                f"{id_advice(0.0)}"
            )


def _is_another(name: str, known: str) -> bool:
    """True if a name differs from a field's by more than a typo: a word is added, or replaced (`conversation_hash`)."""
    words, field = words_of(name), words_of(known)
    changed = [SequenceMatcher(None, a, b).ratio() < 0.5 for a, b in zip(words, field)]
    return _adds_words(name, known) or (len(words) == len(field) > 1 and any(changed))


def _adds_words(name: str, known: str) -> bool:
    """True for `prompt_id` or `rawPrompt` given the field `prompt`."""
    words, field = words_of(name), words_of(known)
    run = len(field)
    return len(words) > run and any(words[i : i + run] == field for i in range(len(words) - run + 1))


def text_by_id(row: Row, name: str) -> dict[str, str]:
    """{id: text} of a row of a public data set, with the id in the column `name`. Raises `DataError` with the line."""
    try:
        if row.values is None:
            raise DataError(row.fault)
        key, text = (require_text(column, row.values.get(column)) for column in (name, "text"))
    except DataError as error:
        raise DataError(f"{row.origin}: {error}") from None
    return {key: text}


def yes_or_no(name: str, value: object) -> bool:
    """Parse true, yes or 1, and false, no or 0. Raises `DataError`."""
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if (word := str(value).strip().lower()) in words and isinstance(value, str | int):
        return words[word]
    raise DataError(f"'{name}' must be true or false, got {shown(value)}")


def text_or_blank(name: str, value: object) -> str:
    """The value, which may be blank text. Raises `DataError` naming the field if it is not text."""
    return value if isinstance(value, str) and not value.strip() else require_text(name, value)


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _from_json(text: str) -> object:
    """The JSON value, or the text itself if it is not JSON. Raises `DataError` for a duplicate key."""
    try:
        return parse_json(text)
    except KeyTwiceError as error:
        raise DataError(str(error)) from None
    except ValueError:
        return text


def _json_list(text: str) -> object:
    value = _from_json(text)
    return value if isinstance(value, list) else text
