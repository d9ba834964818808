"""Reads tables of text: CSV with commas, semicolons or tabs, and Excel workbooks."""

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from prm.errors import DataError, shown
from prm.io.lines import LONGEST_LINE, CsvText, lines_of, open_file, unpacked_suffix
from prm.io.rows import Row
from prm.io.workbooks import CellError, sheet_rows

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHER_DELIMITERS = ",;\t|"
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*')  # Excel reads the first line of a CSV so


def csv_rows(path: Path) -> Iterator[Row]:
    delimiter, skip = delimiter_of(path)
    with open_file(path) as file, _long_fields():
        text = CsvText(file, path)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            first = reader.line_num + 1
            text.begin_row()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                # the start of the next row is unknown, so nothing after this can be trusted
                raise DataError(f"{path}, line {first}: not valid CSV from here on: {error}") from None
            if cells is None:
                return
            if not cells or (skip and first == 1):
                continue
            if header is None:
                header = _header(cells, path, first)
                continue
            yield _cells_row(f"{path}, line {first}", header, cells, delimiter)


def _cells_row(origin: str, header: list[str], cells: list[str], delimiter: str) -> Row:
    if len(cells) != len(header):
        fault = f"{len(cells)} fields, but the header names {len(header)}"
        return Row(origin, None, fault, _as_csv(cells, delimiter), is_text=True)
    # CSV does not distinguish an empty field from a missing one
    return Row(origin, {name: cell or None for name, cell in zip(header, cells, strict=True)}, is_text=True)


def delimiter_of(path: Path) -> tuple[str, bool]:
    """(what separates the columns of a CSV, whether its first line says so and is no header: `sep=;`).

    That is what the file's ending says, unless its header then has one column and has several with one other delimiter.
    """
    usual = DELIMITERS[unpacked_suffix(path)]
    with open_file(path) as file:
        line = next(lines_of(file, path), b"").decode("utf-8-sig", errors="replace")
    if says := _SEP_LINE.fullmatch(line.rstrip("\r\n")):
        return says[1], True
    if _columns(path, usual) > 1:
        return usual, False
    others = [other for other in _OTHER_DELIMITERS if other != usual and _columns(path, other) > 1]
    return (others[0] if len(others) == 1 else usual), False


def _columns(path: Path, delimiter: str) -> int:
    """The number of columns in the first row; 0 if it is no CSV with this delimiter."""
    with open_file(path) as file, _long_fields(), contextlib.suppress(csv.Error):
        return len(
            next((cells for cells in csv.reader(CsvText(file, path), delimiter=delimiter, strict=True) if cells), [])
        )
    return 0


def workbook_rows(path: Path, sheet: str) -> Iterator[Row]:
    header: list[str] | None = None
    for number, cells in sheet_rows(path, sheet):
        origin = f"{path}, row {number}"
        if isinstance(cells, CellError):
            if header is None:
                raise DataError(f"{origin}: {cells}")
            yield Row(origin, None, str(cells), is_text=True)
        elif header is None:
            header = _header(cells, path, number, "row")
        else:
            yield _cells_row(origin, header, cells + [""] * (len(header) - len(cells)), ",")


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Raise the csv module's limit of 128 KiB per field for the block."""
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _header(cells: list[str], path: Path, number: int, where: str = "line") -> list[str]:
    names = [name.strip() for name in cells]
    refuse_duplicates(names, f"{path}, {where} {number}")
    if len(names) == 1 and any(d in names[0] for d in _OTHER_DELIMITERS):
        raise DataError(f"{path}, {where} {number}: one column {shown(names[0])}; use commas in a .csv, tabs in a .tsv")
    return names


def refuse_duplicates(names: list[str], origin: str) -> None:
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise DataError(f"{origin}: the column {shown(name)} is there twice")


def _as_csv(cells: list[str], delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="").writerow(cells)
    return out.getvalue()
