"""Files of rows: every format gives the same rows, and what is broken is named by file and line."""

import bz2
import csv
import gzip
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.data.comparison import Comparison, Message
from prm.errors import DataError, shown
from prm.io.rows import Row
from prm.io.tables import kind, plain, read_rows, read_table, read_values, write_json, write_jsonl
from tests.conftest import read_log

ROWS: list[dict[str, Any]] = [
    {"user_id": "ünï 😀", "prompt": 'a, "b"\tc; d\nnext line', "chosen": "はい", "rejected": "no", "weight": "2"},
    {"user_id": "7", "prompt": " edges ", "chosen": "x\r\ny", "rejected": "'", "weight": None},
]


def as_table(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: list[dict[str, Any]] | pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), out)
    return out.getvalue()


def save(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress}
    path.write_bytes(packers.get(path.suffix, bytes)(content))
    return str(path)


WRITERS = {".jsonl": as_lines, ".csv": as_table, ".tsv": lambda rows: as_table(rows, "\t"), ".parquet": as_parquet}
PACKED = (".gz", ".bz2")
FORMATS = [*WRITERS, *(suffix + packed for suffix in WRITERS for packed in PACKED)]


def values_of(path: str, part: str = "train") -> list[Mapping[str, object] | None]:
    return [row.values for row in read_table(path, part)]


def fault_of(path: str | Path, part: str = "train") -> str:
    """What is wrong with a file, or with its first bad row."""

    def read() -> None:
        for row in read_table(str(path), part):
            if row.fault:
                raise DataError(f"{row.origin}: {row.fault}")

    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message) < 700
    return message.removeprefix(str(path))


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    writer = WRITERS["." + suffix.split(".")[1]]
    path = save(tmp_path, f"log{suffix}", writer(ROWS))
    assert values_of(path) == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".csv.bz2", ".jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_with_its_mark_is_read(tmp_path: Path, suffix: str, encoding: str) -> None:
    text = WRITERS["." + suffix.split(".")[1]](ROWS).decode()
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    assert values_of(save(tmp_path, f"log{suffix}", mark + text.encode(encoding))) == ROWS


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.bz2", ""])
def test_a_json_list_of_objects_is_read_whatever_its_lines(tmp_path: Path, suffix: str, indent: int | None) -> None:
    for values in (ROWS, ROWS[:1]):
        path = save(tmp_path, f"log{suffix}", b"\xef\xbb\xbf\n" + json.dumps(values, indent=indent).encode())
        rows = list(read_table(path))
        assert [row.values for row in rows] == values
        assert [row.is_text for row in rows] == [False] * len(values)
    path = save(tmp_path, "places.json", b'[\n{"a":\n1}, {"a": 2},\n\n{"a": 3}\n]\n')
    places = [row.origin.removeprefix(path) for row in read_table(path)]
    assert places == [", line 2 (item 1)", ", line 3 (item 2)", ", line 5 (item 3)"]


@pytest.mark.parametrize("first", [b"[1]", b"[", b'[{"a": 1}', b"[]"])
def test_json_lines_that_begin_with_a_list_stay_json_lines(tmp_path: Path, first: bytes) -> None:
    """One bad line, and the good ones behind it."""
    rows = list(read_table(save(tmp_path, "a.jsonl", first + b'\n{"a": 1}\n{"a": 2}\n')))
    assert [row.values for row in rows] == [None, {"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "delimiter", "first"),
    [
        ("a.csv", ";", ""),
        ("a.csv", "\t", ""),
        ("a.tsv", ",", ""),
        ("a.tsv", ";", ""),
        ("a.csv", "|", ""),
        ("a.csv", ";", "sep=;\r\n"),
        ("a.csv", ",", '"sep=,"\n'),
        ("a.csv", "|", "sep=|\n"),
    ],
)
def test_columns_are_separated_by_what_the_header_or_the_first_line_shows(
    tmp_path: Path, name: str, delimiter: str, first: str
) -> None:
    """As Excel writes a CSV where a comma is the decimal point, quoted names and line ends in cells included."""
    rows = [row | {"not read": 'x; "y", z'} for row in ROWS]
    path = save(tmp_path, name, b"\xef\xbb\xbf" + first.encode() + as_table(rows, delimiter))
    assert values_of(path) == rows
    assert next(read_table(path)).origin == f"{path}, line {3 if first else 2}"


def test_a_table_with_several_columns_is_read_by_its_ending_whatever_else_its_header_holds(tmp_path: Path) -> None:
    assert values_of(save(tmp_path, "a.csv", b"a;b;c,d\n1;2,3\n")) == [{"a;b;c": "1;2", "d": "3"}]
    assert values_of(save(tmp_path, "a.csv", b"a\n1;2\n")) == [{"a": "1;2"}]


def test_a_data_set_gives_the_same_rows_whole_or_by_its_parts(tmp_path: Path) -> None:
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    Dataset.from_list(ROWS).save_to_disk(whole)
    DatasetDict(train=Dataset.from_list(ROWS[:1]), test=Dataset.from_list(ROWS[1:])).save_to_disk(parts)
    assert values_of(whole) == ROWS
    assert values_of(parts) == ROWS[:1]
    assert values_of(parts, "test") == ROWS[1:]
    assert [row.origin for row in read_table(parts, "test")] == [f"{parts} (test), row 1"]
    fault = fault_of(parts, "validation")
    assert all(named in fault for named in ("'validation'", "'train', 'test'", "'data.dataset_split'"))


def test_a_folder_of_files_is_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    save(tmp_path / "set", "train.jsonl", as_lines(ROWS))
    assert values_of(str(tmp_path / "set")) == ROWS


def test_origins_count_lines_in_text_and_rows_in_tables(tmp_path: Path) -> None:
    """The first row of the CSV goes over lines 2 and 3."""
    lines = save(tmp_path, "a.jsonl", b"\n" + as_lines(ROWS))
    table = save(tmp_path, "a.csv", as_table(ROWS))
    parquet = save(tmp_path, "a.parquet", as_parquet(ROWS))
    places = {path: [row.origin.removeprefix(path) for row in read_table(path)] for path in (lines, table, parquet)}
    assert places == {
        lines: [", line 2", ", line 3"],
        table: [", line 2", ", line 4"],
        parquet: [", row 1", ", row 2"],
    }


def test_rows_keep_counting_from_one_batch_of_a_parquet_file_to_the_next(tmp_path: Path) -> None:
    path = save(tmp_path, "a.parquet", as_parquet([{"n": i} for i in range(3000)]))
    assert [(row.values, row.origin.split()[-1]) for row in read_table(path)][2999] == ({"n": 2999}, "3000")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_a_byte_order_mark_and_windows_line_ends_are_tolerated(tmp_path: Path, suffix: str) -> None:
    rows = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]
    content = WRITERS[suffix](rows).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert values_of(save(tmp_path, f"a{suffix}", b"\xef\xbb\xbf" + content)) == rows


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path, "log.jsonl", as_lines(ROWS))
    assert values_of("~/log.jsonl") == ROWS


def test_a_csv_knows_text_only_and_an_empty_field_is_a_missing_one(tmp_path: Path) -> None:
    (row,) = read_table(save(tmp_path, "a.csv", b'a,b,c\n1,,""\n'))
    assert (row.values, row.is_text) == ({"a": "1", "b": None, "c": None}, True)
    (row,) = read_table(save(tmp_path, "a.jsonl", b'{"a": 1}'))
    assert (row.values, row.is_text) == ({"a": 1}, False)


def test_a_bad_line_is_given_with_its_fault_and_the_rest_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, "a.jsonl", b'{"a": 1}\n[1]\n\xff\n{"a": 2}\n{"a"')
    rows = list(read_table(path))
    assert [row.values for row in rows] == [{"a": 1}, None, None, {"a": 2}, None]
    assert rows[1] == Row(f"{path}, line 2", None, rows[1].fault, "[1]")
    assert "list" in rows[1].fault
    assert ("UTF-8" in rows[2].fault, "byte 0" in rows[2].fault, rows[2].raw) == (True, True, "\ufffd")
    assert "cut short" in rows[4].fault


def test_a_ragged_line_of_a_csv_is_given_as_it_stands(tmp_path: Path) -> None:
    path = save(tmp_path, "a.csv", b'a,b\n1,"x, y",3\n1\n\n1,2\n')
    rows = list(read_table(path))
    assert [row.raw for row in rows[:2]] == ['1,"x, y",3', "1"]
    for row, fields in zip(rows, (3, 1)):
        assert re.fullmatch(rf"{fields}\D+2", row.fault)
    assert rows[2].values == {"a": "1", "b": "2"}


NESTED = b"[" * 100_000
BROKEN: dict[str, tuple[str, bytes, str]] = {  # name -> (file, content, what is said after its path)
    "empty lines": ("a.jsonl", b"", ": holds no rows"),
    "white space": ("a.jsonl", b"\n \n\t\n", ": holds no rows"),
    "byte order mark alone": ("a.jsonl", b"\xef\xbb\xbf", ": holds no rows"),
    "empty table": ("a.csv", b"", ": holds no rows"),
    "a header alone": ("a.csv", b"a,b\n", ": holds no rows"),
    "empty Parquet": ("a.parquet", b"", ": not a Parquet file that can be read: "),
    "Parquet without rows": ("a.parquet", as_parquet(pa.table({"a": pa.array([], pa.string())})), ": holds no rows"),
    "broken JSON": ("a.jsonl", b'{"a": 1}\n{a: 1}\n', ", line 2: not valid JSON: "),
    "cut last line": ("a.jsonl", b'{"a": 1}\n{"a": ', ", line 2: not valid JSON: "),
    "bad UTF-8": ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ", line 2: not UTF-8 text (byte 7 of the line)"),
    "UTF-16 without its mark": ("a.jsonl", '{"a": 1}'.encode("utf-16-le"), ", line 1: not valid JSON: "),
    "half a letter of UTF-16": ("a.jsonl", '{"a": 1}'.encode("utf-16")[:-1], ", line 1: not UTF-16 text, "),
    "NUL in JSON": ("a.jsonl", b'{"a": "\x00"}\n', ", line 1: not valid JSON: Invalid control character"),
    "an empty array": ("a.json", b"[ ]", ": holds no rows"),
    "an array of numbers": ("a.json", b'[\n{"a": 1},\n2]', ", line 3 (item 2): expected a JSON object, got int 2"),
    "an array that is cut": ("a.json", b'[\n{"a": 1},\n{"a":', ", line 3: not valid JSON from here on (item 2): "),
    "an array without a comma": ("a.json", b'[{"a": 1}\n {"a": 2}]', ", line 2: not valid JSON from here on: "),
    "text behind an array": ("a.json", b'[\n{"a": 1}]\n[]', ", line 2: text after the end of the JSON list"),
    "bad UTF-8 in an array": ("a.json", b'[{"a": 1},\n{"a": "\xff"}]', ", line 2: not UTF-8 text (byte 7 of the line)"),
    "a key twice in an array": (
        "a.json",
        b'[\n\n{"a": 1, "a": 2}]',
        ", line 3: not valid JSON from here on (item 1): ",
    ),
    "NaN in an array": ("a.json", b'[{"a": NaN}]', ", line 1: not valid JSON from here on (item 1): NaN is not a JSON"),
    "an object over lines": ("a.json", b'{\n "a": 1\n}', ", line 1: not valid JSON: "),
    "a number": ("a.jsonl", b"3", ", line 1: expected a JSON object, got int 3"),
    "null": ("a.jsonl", b"null", ", line 1: expected a JSON object, got null"),
    "NaN": ("a.jsonl", b'{"a": NaN}', ", line 1: not valid JSON: NaN is not a JSON number"),
    "nested too deeply to parse": ("a.jsonl", NESTED, ", line 1: not valid JSON from here on (item 1): nested too"),
    "nested too deeply to write": (
        "a.jsonl",
        b'{"a": ' + NESTED[:300] + b"]" * 300 + b"}",
        ", line 1: not valid JSON: nested too deeply",
    ),
    "a very long integer": ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", ", line 1: not valid JSON: Exceeds the limit"),
    "bad UTF-8 in a table": ("a.csv", b"a,b\n1,2\n\xff,3\n", ", line 3: not UTF-8 text (byte 0 of the line)"),
    "unclosed quote": (
        "a.csv",
        b'a,b\n1,2\n1,"x\n1,2\n',
        ", line 3: not valid CSV from here on: unexpected",
    ),
    "text behind a quote": ("a.csv", b'a,b\n1,"x"y\n', ", line 2: not valid CSV from here on: "),
    "Mac line ends": ("a.csv", b"a,b\r1,2\r", ", line 1: not valid CSV from here on: new-line character"),
    "a key twice": ("a.jsonl", b'{"a": 1, "b": 2, "a": 3}', ", line 1: not valid JSON: the key 'a' is there twice"),
    "a key twice within": (
        "a.jsonl",
        b'{"a": [{"b": 1, "b": 1}]}',
        ", line 1: not valid JSON: the key 'b' is there twice",
    ),
    "ragged": ("a.tsv", b"a\tb\n1\n", ", line 2: 1 fields, but the header names 2"),
    "duplicate header": ("a.csv", b"a,b,a\n1,2,3\n", ", line 1: the column 'a' is there twice"),
    "two delimiters": ("a.csv", b"a;b\tc\n", ", line 1: one column 'a;b\\tc'; use commas in a .csv, tabs in a .tsv"),
    "ragged with semicolons": ("a.csv", b"a;b\n1;2;3\n", ", line 2: 3 fields, but the header names 2"),
    "bad UTF-8 in a header": (
        "a.csv",
        b"a,\xfc\n1,2\n",
        ", line 1: not UTF-8 text (byte 2 of the line); in Excel, save as",
    ),
    "not Parquet": ("a.parquet", b"PAR1 or not", ": not a Parquet file that can be read: "),
    "cut Parquet": ("a.parquet", as_parquet(ROWS)[:-40], ": not a Parquet file that can be read: "),
}


OTHER_FILES = {
    "a.csv": (b"PK\x03\x04\x14\x00", "a ZIP archive"),
    "b.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00", "an old Excel workbook"),
    "a.jsonl": (gzip.compress(b'{"a": 1}'), "packed by gzip: let its name end in .gz"),
    "b.jsonl": (bz2.compress(b'{"a": 1}'), "packed by bzip2: let its name end in .bz2"),
    "c.jsonl": (as_parquet(ROWS), "a Parquet file: let its name end in .parquet"),
    "d.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "e.jsonl": (b"<!DOCTYPE html>\n<html>", "a web page"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize("packed", ["", ".gz", ".bz2"])
def test_a_file_of_another_kind_is_named_with_what_to_do(tmp_path: Path, name: str, packed: str) -> None:
    content, said = OTHER_FILES[name]
    assert fault_of(save(tmp_path, name + packed, content)).startswith(f": is {said}")


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("packed", ["", ".gz", ".bz2"])
def test_a_broken_file_is_named_with_the_line_and_the_fault(tmp_path: Path, case: str, packed: str) -> None:
    name, content, said = BROKEN[case]
    path = save(tmp_path, name + packed, content)
    assert said in fault_of(path)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("damage", ["cut", "flipped", "suffix", "not packed"])
def test_a_damaged_gzip_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    packed = bytearray(gzip.compress(WRITERS[suffix](ROWS * 50)))
    if damage == "cut":
        packed = packed[: len(packed) // 2]
    elif damage == "flipped":
        middle = len(packed) // 2
        packed[middle : middle + 20] = bytes(b ^ 0xFF for b in packed[middle : middle + 20])
    elif damage == "suffix":
        packed += b"more"
    path = tmp_path / f"log{suffix}.gz"
    path.write_bytes(WRITERS[suffix](ROWS) if damage == "not packed" else bytes(packed))
    assert "read: " in fault_of(path) or "line" in fault_of(path)


def read_or_refuse(path: str) -> None:
    """Any other error than a `DataError` that names the file escapes and fails the test."""
    try:
        rows = list(read_table(path))
    except DataError as error:
        assert str(error).startswith(path)  # noqa: PT017
        return
    assert rows
    assert all((row.values is None) == bool(row.fault) for row in rows)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_parquet_file_is_refused_or_read_but_nothing_else(tmp_path: Path, place: float) -> None:
    content = bytearray(as_parquet(ROWS * 50))
    for start in range(int(place * len(content)), int(place * len(content)) + 40):
        damaged = bytes(content[:start] + bytes([content[start] ^ 0xFF]) + content[start + 1 :])
        read_or_refuse(save(tmp_path, "a.parquet", damaged))


def test_a_damaged_data_set_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    Dataset.from_list(ROWS * 100).save_to_disk(str(folder))
    (arrow,) = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:200])
    assert "cannot be loaded as a data set" in fault_of(folder)


@pytest.mark.parametrize("path", ["none.jsonl", "none.csv", "./none", "none.csv.gz", "~/none", "a/b/none"])
def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # else a file there may have a name like it
    assert fault_of(path) == ": no such file or folder"


def test_what_may_be_a_hub_id_is_looked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load_dataset(name: str, trust_remote_code: bool) -> dict[str, Dataset]:
        assert not trust_remote_code
        asked.append(name)
        return {"train": Dataset.from_list(ROWS)}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for name in ("trl-lib/some_feedback", "org/feedback-v0.1"):
        assert values_of(name) == ROWS
    assert asked == ["trl-lib/some_feedback", "org/feedback-v0.1"]


def test_one_table_of_a_hub_id_is_read_from_the_hubs_parquet_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, *, trust_remote_code: bool, **more: str) -> dict[str, Dataset]:
        asked.append((name, more))
        return {"train": Dataset.from_list([{"x": "1"}]), "validation": Dataset.from_list([{"x": "2"}])}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (row,) = read_table("owner/name", "validation", "survey")
    assert (row.origin, row.values) == ("owner/name (validation), row 1", {"x": "2"})
    assert asked == [("owner/name", {"data_dir": "survey", "revision": "refs/convert/parquet"})]


def test_a_loader_that_says_nothing_is_named_by_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **more: bool) -> None:
        raise KeyError

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert fault_of("org/feedback").endswith(": KeyError")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, "a.jsonl", as_lines(ROWS))
    Path(path).chmod(0)
    assert "cannot be opened: " in fault_of(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path, "a.jsonl", as_lines(ROWS))
    monkeypatch.setattr(Path, "open", refuse)
    assert fault_of(path).endswith(": Permission denied")


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_field_of_ten_megabytes_is_read_and_the_limit_is_put_back(tmp_path: Path, suffix: str) -> None:
    before = csv.field_size_limit(131_072)
    path = save(tmp_path, f"a{suffix}", WRITERS[suffix]([{"a": "x" * 10_000_000, "b": "y"}]))
    assert [len(str(row["a"])) for row in values_of(path) if row] == [10_000_000]
    assert csv.field_size_limit(before) == 131_072


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_line_of_ten_megabytes_makes_no_message_of_ten_megabytes(tmp_path: Path, name: str) -> None:
    assert fault_of(save(tmp_path, name, b"x;,\t" * 2_500_000 + b"\n1,1,1\n"))


MIB = 1 << 20
BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a line": ("a.jsonl", lambda: b" " * (65 * MIB), ", line 1: is longer than 64 MiB"),
    "a second line": ("a.jsonl", lambda: b"{}\n" + b" " * (65 * MIB), ", line 2: is longer than 64 MiB"),
    "a field": ("a.csv", lambda: b"a,b\n1," + b"x" * (65 * MIB), ", line 2: is longer than 64 MiB"),
    "an open quote": ("a.csv", lambda: b'a,b\n1,"' + b"x\n" * 1_000_002, ", line 2: the row is longer than 64 MiB"),
    "the same, of long lines": (
        "a.csv",
        lambda: b'a,b\n1,"' + (b"x" * MIB + b"\n") * 65,
        ", line 2: the row is longer than",
    ),
    "empty lines": ("a.jsonl", lambda: b"\n \n" * 500_001, ", line 1000001: more than 1,000,000 empty lines"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_what_unpacks_without_end_is_refused_within_seconds(tmp_path: Path, case: str) -> None:
    name, content, said = BOMBS[case]
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(content(), 1))
    started = time.process_time()
    assert said in fault_of(path)
    assert time.process_time() - started < 10


def test_what_unpacks_to_far_more_than_texts_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prm.io.lines.LOOKED_AT", 1000)
    assert "500 times" in fault_of(save(tmp_path, "a.jsonl.gz", (b" " * 9999 + b"{}\n") * 99))


def test_parquet_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prm.io.lines.LARGEST_WHOLE", 1000)
    assert ": holds more than " in fault_of(save(tmp_path, "a.parquet.gz", as_parquet(ROWS * 50)))


def test_rows_of_a_csv_may_be_long_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is for each row: ten of half its size are read."""
    monkeypatch.setattr("prm.io.lines.LONGEST_LINE", 100)
    path = save(tmp_path, "a.csv", as_table([{"a": "x\n" * 25, "b": "y"}] * 10))
    assert len(values_of(path)) == 10


def test_a_log_that_packs_well_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same long prompt in every row: a hundred bytes become one."""
    monkeypatch.setattr("prm.io.lines.LOOKED_AT", 1000)
    path = save(tmp_path, "a.jsonl.gz", as_lines([{"prompt": "tell me " * 200, "n": i} for i in range(500)]))
    assert Path(path).stat().st_size * 100 < 500 * 1600
    assert len(values_of(path)) == 500


def test_half_of_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    """In a column that is only carried along: what is read is text."""
    row = {"\ud800": "caf\u00e9 \udfff"}
    write_jsonl(tmp_path / "a.jsonl", [row, {"e": "\u00e9"}])
    write_json(tmp_path / "a.json", row)
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()[1] == '{"e": "\u00e9"}'
    assert next(values for _, values in read_rows(tmp_path / "a.jsonl")) == row
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == row


def test_a_parquet_file_keeps_lists_structs_and_dates(tmp_path: Path) -> None:
    moment = datetime(2024, 5, 1, 12, 30)
    row = {"turns": [{"role": "user", "content": "hi"}], "at": moment, "n": 3, "none": None, "x": 0.5}
    assert values_of(save(tmp_path, "a.parquet", as_parquet([row]))) == [row]


def test_a_parquet_date_beyond_what_python_knows_is_refused(tmp_path: Path) -> None:
    table = pa.table({"at": pa.array([2**52], pa.timestamp("ms"))})
    assert "Parquet" in fault_of(save(tmp_path, "a.parquet", as_parquet(table)))


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    assert "'a'" in fault_of(save(tmp_path, "a.parquet", as_parquet(table)))


def test_text_that_is_not_utf8_in_a_parquet_file_is_refused(tmp_path: Path) -> None:
    bad = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    message = fault_of(save(tmp_path, "a.parquet", as_parquet(pa.table({"a": bad}))))
    assert "Parquet" in message


def test_read_rows_stops_at_the_first_line_that_is_no_object(tmp_path: Path) -> None:
    path = save(tmp_path, "a.jsonl", b'\n{"a": 1}\n\n[2]\n')
    rows = read_rows(path)
    assert next(rows) == (2, {"a": 1})
    with pytest.raises(DataError, match=r"a\.jsonl, line 4: .*list"):
        next(rows)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.jsonl: the file is empty"),
        (b"\xef\xbb\xbf\n", "a.jsonl: the file is empty"),
        (b"1\n{", "a.jsonl, line 2: not valid JSON"),
    ],
)
def test_read_values_names_file_and_line(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_values(save(tmp_path, "a.jsonl", content)))
    assert said in str(caught.value)


def test_read_values_of_a_missing_file() -> None:
    with pytest.raises(DataError, match=r"^none\.jsonl: no such file$"):
        list(read_values("none.jsonl"))


KEPT = [
    Comparison("ünï 😀", 'línea\u2028two\n\t"q" \\ \x00', "はい", "いいえ", user_text="né à Paris", time="2024-01-01"),
    Comparison(
        "b", (Message("system", "s"), Message("user", "日本")), " a ", "a", p_chosen=0.1, weight=1 / 3, time=1.5
    ),
    Comparison("a", "q", "x", "y", p_chosen=0.5, time=0, chosen_first=False, metadata={"a": {"b": [1, None]}}),
]


def test_what_is_written_is_read_back_exactly_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    write_jsonl(path, KEPT)
    again = read_log(path)
    assert again == KEPT
    assert [c.origin for c in again] == [f"{path}, line {n}" for n in (1, 2, 3)]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    def breaks() -> Iterator[Comparison]:
        yield from KEPT
        raise RuntimeError("half way")

    log = tmp_path / "log.jsonl"
    write_jsonl(log, KEPT[:1])
    before = log.read_bytes()
    with pytest.raises(RuntimeError, match="half way"):
        write_jsonl(log, breaks())
    assert log.read_bytes() == before


@dataclass
class Odd:
    """Nothing that JSON knows."""

    x: int = 1


def test_plain_is_what_json_and_utf8_can_hold(tmp_path: Path) -> None:
    value = {1: (datetime(2024, 5, 1), float("nan"), float("inf")), "half \ud83d": ["\ud83d", Odd(), b"x", True, None]}
    found = plain(value)
    assert found == {
        "1": ["2024-05-01T00:00:00", None, None],
        "half ?": ["?", "Odd(x=1)", "b'x'", True, None],
    }
    write_jsonl(tmp_path / "a.jsonl", [found])
    write_json(tmp_path / "a.json", found)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == found


def test_values_in_messages_are_named_by_kind_and_cut() -> None:
    values: list[Any] = ["", {}, [], True, None, 3]
    assert [kind(v) for v in values] == [
        "text", "an object (dict)", "a list", "true/false", "null (None)", "int 3"
    ]  # fmt: skip
    assert shown("ab") == "'ab'"
    assert len(shown("x" * 10**6)) < 300
    assert len(kind(b"x" * 10**6)) < 300


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.sampled_from([*FORMATS, ".json", ""]))
def test_arbitrary_bytes_are_read_or_refused(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        read_or_refuse(save(Path(folder), f"log{suffix}", content))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.lists(st.text(max_size=6), min_size=2, max_size=2), min_size=1, max_size=5))
def test_what_a_csv_writer_wrote_is_read_back(cells: list[list[str]]) -> None:
    """Line ends within a field and all other text come back; an empty field is a missing one."""
    cells = [[c.encode(errors="ignore").decode() for c in row] for row in cells]
    rows = [{"a": a, "b": b} for a, b in cells]
    with tempfile.TemporaryDirectory() as folder:
        for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
            path = save(Path(folder), name, as_table(rows, delimiter))
            assert values_of(path) == [{k: v or None for k, v in row.items()} for row in rows]
