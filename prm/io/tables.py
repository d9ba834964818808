"""Reads rows of JSON, CSV, Parquet, Excel and `datasets` data sets; writes JSON Lines and JSON. No torch here."""

import codecs
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Protocol, overload

from prm.errors import DataError, meant, shorten, shown
from prm.io.csv_rows import csv_rows, refuse_duplicates, workbook_rows
from prm.io.disk import make_folder, write_whole
from prm.io.folders import is_run, scratch_folder
from prm.io.lines import DAMAGE, LARGEST_WHOLE, is_packed, lines_of, open_file, read_whole, unpacked_suffix
from prm.io.missing import no_such
from prm.io.rows import Json, Row

_SPACE = re.compile(r"\s*")
_TOO_DEEP = "nested too deeply"
_ROWS_AT_ONCE = 1024
MOST_LEVELS = 100  # levels of nesting: deeper values would exhaust the stack later


class KeyTwiceError(ValueError):
    """A JSON object has a duplicate key."""


class HasRow(Protocol):
    """A record that can write itself as a JSON object."""

    def to_row(self) -> Mapping[str, object]:
        """The record, JSON-ready."""
        ...


def read_table(path: str, part: str = "train", table: str = "") -> Iterator[Row]:
    """Every row of a table, in order; rows that cannot be read come with their fault.

    Args:
        path: `.csv`, `.tsv`, `.xlsx` or `.parquet` file, any other file as JSON Lines or a JSON list of objects, each
            plain, `.gz` or `.bz2`; a folder or hub id as a `datasets` data set.
        part: the data set's split, or the sheet of a workbook with several; other files have none.
        table: one of several tables under a hub id, read from the hub's Parquet copy, which data sets with a loading
            script have, too.

    Raises `DataError` if the file cannot be read or holds no rows.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        rows = _dataset_rows(path, part, table)
    else:
        readers = {".csv": csv_rows, ".tsv": csv_rows, ".parquet": _parquet_rows}
        suffix = unpacked_suffix(file)
        rows = workbook_rows(file, part) if suffix == ".xlsx" else readers.get(suffix, _json_rows)(file)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(f"{path}: holds no rows")


def is_store(path: str) -> bool:
    """Whether a path names a database of the live service: `sqlite:///...` or `postgresql://...`."""
    return path.startswith(("sqlite:", "postgresql:", "postgresql+psycopg:", "postgres:"))


def require_log(path: str) -> None:
    """Raise `DataError` for a run folder, and if there is no file or folder of this name, unless it may be a hub id."""
    if is_store(path):
        return  # whoever reads it says what is wrong
    # a hub id may end in a version ("name-v0.1"), a file in letters
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix[1:].isalpha()
    file = Path(path).expanduser()
    if looks_local and not (file.is_file() or file.is_dir()):
        raise DataError(no_such(path, "file or folder"))
    if is_run(file):
        more = f"'prm train LOG --from {path}' ('start_from' in Python) trains a reward model further"
        raise DataError(f"{path}: a run folder, not a feedback log; {more}")


def read_values(path: str | Path) -> Iterator[tuple[int, Json]]:
    """(line number, JSON value) of each line, in a `.txt` file the line's text; blank lines are skipped.

    Raises `DataError` naming file and line for a missing or empty file, invalid UTF-8 and invalid JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(no_such(path, "file"))
    empty = True
    for number, raw in _lines(path):
        if (parsed := _json_value(raw, number, parse=str if path.suffix == ".txt" else parse_json)) is None:
            continue
        value, fault = parsed
        if fault:
            raise DataError(f"{path}, line {number}: {fault}")
        empty = False
        yield number, value
    if empty:
        raise DataError(f"{path}: the file is empty")


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Json]]]:
    """(line number, object) of each line of a JSON Lines file.

    Raises `DataError` as `read_values` does, and for lines that are not an object.
    """
    for number, row in read_values(path):
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, got {kind(row)}")
        yield number, row


def write_jsonl(path: str | Path, rows: Iterable[HasRow | Mapping[str, object]]) -> None:
    """Write rows as JSON Lines, atomically: a kill leaves the old file or the new one."""
    path = Path(path)

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(to_json(row if isinstance(row, Mapping) else row.to_row()) + "\n")

    make_folder(path.parent)
    write_whole(path, write)


def write_json(path: Path, value: object) -> None:
    """Write one JSON value, indented, atomically."""
    write_text(path, to_json(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. It is a new file: hard links to the old one keep the old content."""
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def parse_json(text: str, finite: bool = True) -> Json:
    """The value of JSON text. Raises `ValueError` for invalid JSON, deep nesting and duplicate keys.

    Args:
        finite: refuse NaN and infinities, which Python writes although JSON does not have them.
    """
    try:
        value: Json = json.loads(text, parse_constant=_refuse_constant if finite else None, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _is_too_deep(text, value):
        raise ValueError(_TOO_DEEP)
    return value


def to_json(value: object, indent: int | None = None) -> str:
    """JSON text without escapes, unless it has a lone surrogate, which UTF-8 cannot encode."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def kind(value: object) -> str:
    """The kind of a value, for error messages: in the words of JSON and of Python, as both give rows."""
    names = {str: "text", dict: "an object (dict)", list: "a list", bool: "true/false", type(None): "null (None)"}
    return names.get(type(value)) or f"{type(value).__name__} {shorten(' '.join(str(value).split()))}"


@overload
def plain(value: str) -> str: ...


@overload
def plain(value: Mapping[str, object]) -> dict[str, Json]: ...


@overload
def plain(value: object) -> Json: ...


def plain(value: object) -> Json:
    """Convert a value to one that JSON and UTF-8 can hold."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # a lone surrogate becomes "?"
    if isinstance(value, date):  # also a datetime
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {plain(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, int | float | bool | None) else plain(str(value))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each line."""
    with open_file(path) as file:
        yield from enumerate(lines_of(file, path), start=1)


def _json_value(raw: bytes, number: int, parse: Callable[[str], Json] = parse_json) -> tuple[Json, str] | None:
    """(value, "") of a line, or (None, fault); `None` for a blank line."""
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 text (byte {error.start} of the line)"
    if not text:
        return None
    try:
        return parse(text), ""
    except ValueError as error:
        fault = f"{error.msg}, at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
        hint = "" if raw.endswith(b"\n") else "; the file ends here, so the line may be cut short"
        if text in ("[", "{", "[{"):
            hint = "; write one object per line, not one over several lines"
        return None, f"not valid JSON: {fault}{hint}"


def _json_rows(path: Path) -> Iterator[Row]:
    if _holds_list(path):
        yield from _listed_rows(path)
        return
    for number, raw in _lines(path):
        if (parsed := _json_value(raw, number)) is not None:
            yield _json_row(f"{path}, line {number}", *parsed, raw)


def _json_row(origin: str, value: Json, fault: str, raw: bytes) -> Row:
    if not fault and isinstance(value, dict):
        return Row(origin, value)
    if not fault:
        hint = "; write one object per line, not a list of objects" if isinstance(value, list) else ""
        fault = f"expected a JSON object, got {kind(value)}{hint}"
    return Row(origin, None, fault, raw.decode("utf-8", errors="replace").rstrip("\r\n"))


def _holds_list(path: Path) -> bool:
    """Whether a file is one JSON list, and not JSON Lines that begin with a list or with a broken one."""
    lines = ((number, raw) for number, raw in _lines(path) if raw.removeprefix(codecs.BOM_UTF8).strip())
    number, first = next(lines, (1, b""))
    if not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return False
    parsed = _json_value(first, number)
    number, second = next(lines, (number + 1, b""))
    if parsed is not None and not parsed[1]:
        return not second
    parsed = _json_value(second, number)
    _, third = next(lines, (0, b""))
    return parsed is None or not isinstance(parsed[0], dict) or third.lstrip().startswith(b"]")


def _listed_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON list, each with the line that it begins on."""
    text = _whole_text(path)
    at, line, counted, item = text.index("[") + 1, 1, 0, 0
    while True:
        at = _after_space(text, at)
        line, counted = line + text.count("\n", counted, at), at
        if item and text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] == "]":
            if text[at + 1 :].strip():
                raise DataError(f"{path}, line {line}: text after the end of the JSON list")
            return
        elif item:
            raise DataError(f"{path}, line {line}: not valid JSON from here on: expected ',' or ']' after item {item}")
        line, counted = line + text.count("\n", counted, at), at
        item, start = item + 1, at
        try:
            value, at = _DECODER.raw_decode(text, at)
            if _is_too_deep(text[start:at], value):
                raise ValueError(_TOO_DEEP)
        except (ValueError, RecursionError) as error:
            fault = _TOO_DEEP if isinstance(error, RecursionError) else getattr(error, "msg", None) or str(error)
            raise DataError(f"{path}, line {line}: not valid JSON from here on (item {item}): {fault}") from None
        yield _json_row(f"{path}, line {line} (item {item})", value, "", text[start:at].encode(errors="replace"))


def _whole_text(path: Path) -> str:
    """A file's text. Raises `DataError` if it is no UTF-8, or longer than what is read at once."""
    parts, size = [], 0
    for number, raw in _lines(path):
        size += len(raw)
        if size > LARGEST_WHOLE:
            raise DataError(f"{path}: a JSON list of more than {LARGEST_WHOLE >> 20} MiB: write one object per line")
        try:
            parts.append(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: not UTF-8 text (byte {error.start} of the line)") from None
    return "".join(parts)


def _after_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        source = pa.BufferReader(read_whole(path)) if is_packed(path) else pa.memory_map(str(path))
        table = pq.ParquetFile(source)
        refuse_duplicates(table.schema_arrow.names, str(path))
        for batch in table.iter_batches(_ROWS_AT_ONCE):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}, row {number}", values)
    except DataError:
        raise
    except (pa.ArrowException, *DAMAGE, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {_first_line(error)}") from None


def _dataset_rows(path: str, part: str, table: str) -> Iterator[Row]:
    require_log(path)
    # a local folder may be a private log: do not leave a copy in the cache of `datasets`
    with scratch_folder() if Path(path).expanduser().is_dir() else nullcontext() as scratch:
        yield from _loaded_rows(path, part, table, scratch)


def _loaded_rows(path: str, part: str, table: str, cache: Path | None) -> Iterator[Row]:
    import datasets  # imports torch, which files do not need

    folder = Path(path).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            dataset = datasets.load_from_disk(str(folder))
        elif folder.is_dir():
            dataset = datasets.load_dataset(str(folder), cache_dir=str(cache), trust_remote_code=False)
        elif table:
            dataset = datasets.load_dataset(
                path, data_dir=table, revision="refs/convert/parquet", trust_remote_code=False
            )
        else:
            dataset = datasets.load_dataset(path, trust_remote_code=False)
    except Exception as error:  # loaders raise many types
        raise DataError(f"{path}: cannot be loaded as a data set: {_first_line(error)}") from None
    if isinstance(dataset, dict):
        if part not in dataset:
            raise DataError(
                f"{path}: has no split {part!r}, only {', '.join(map(repr, dataset))}; set 'data.dataset_split'"
                + meant(part, dataset)
            )
        dataset = dataset[part]
    rows = iter(dataset)
    for number in itertools.count(1):
        try:
            values = dict(next(rows))
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"{path} ({part}), row {number}: cannot be read: {_first_line(error)}") from None
        yield Row(f"{path} ({part}), row {number}", values)


def _is_too_deep(text: str, value: object) -> bool:
    return text.count("[") + text.count("{") > MOST_LEVELS and _levels(value) > MOST_LEVELS


def _levels(value: object) -> int:
    """Nesting depth of lists and objects."""
    levels, inner = 0, [value]
    while nested := [x for x in inner if isinstance(x, list | dict)]:
        levels += 1
        inner = [y for x in nested for y in (x.values() if isinstance(x, dict) else x)]
    return levels


def _first_line(error: Exception) -> str:
    return shorten(next(iter(str(error).splitlines()), type(error).__name__))


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object with these members. Raises `KeyTwiceError` for a duplicate key."""
    members = dict(pairs)
    if len(members) != len(pairs):
        name, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise KeyTwiceError(f"the key {shown(name)} is there twice")
    return members


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object)
