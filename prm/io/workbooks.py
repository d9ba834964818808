"""Rows of an Excel workbook (.xlsx), as the text that Excel shows, read by openpyxl."""

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from datetime import datetime, time
from itertools import repeat
from pathlib import Path
from typing import BinaryIO, Protocol

from prm.errors import DataError, shown
from prm.io.lines import LARGEST_WHOLE, is_packed, read_whole

_MOST_ROWS = 1 << 20  # of a sheet in Excel; a number beyond it would be counted up to, row by row
_FORMULA = re.compile(rb"<(\w+:)?f[\s/>]")
_PIECE = 1 << 20
_EXACT = 2**53  # larger whole numbers, such as ids, have lost their last digits


class _Cell(Protocol):
    value: object
    data_type: str
    coordinate: str


class _Sheet(Protocol):
    def iter_rows(self) -> Iterator[tuple[_Cell, ...]]: ...

    def reset_dimensions(self) -> None: ...


class CellError(ValueError):
    """A cell holds an error value, such as #N/A, a formula without its value, or a number without its last digits."""


def sheet_rows(path: Path, sheet: str) -> Iterator[tuple[int, list[str] | CellError]]:
    """(row number, cells) of each row of a sheet that is not empty; cells are text, "" where there is nothing.

    Dates become ISO 8601 text, true and false TRUE and FALSE; formulas have the value that was saved with them.

    Args:
        sheet: which sheet of several; a workbook with one sheet is read whatever it is called.

    Raises `DataError` if the file is no workbook, is damaged or too large, or has several sheets and none of that name.
    """
    try:
        content: BinaryIO = io.BytesIO(read_whole(path)) if is_packed(path) else path.open("rb")
        with content, zipfile.ZipFile(content) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_WHOLE:
                raise DataError(f"{path}: unpacks to more than {LARGEST_WHOLE >> 20} MiB, the limit for a workbook")
            values = _sheet(content, path, sheet, formulas=False)
            formulas = _sheet(content, path, sheet, formulas=True) if _has_formulas(archive) else None
            yield from _rows(path, values, formulas)
    except DataError:
        raise
    except Exception as error:  # a damaged workbook raises anything
        fault, fix = str(error) or type(error).__name__, "save it again in a spreadsheet program, or as CSV"
        raise DataError(f"{path}: not an Excel workbook that can be read: {fault}; {fix}") from None


def _sheet(content: BinaryIO, path: Path, sheet: str, formulas: bool) -> _Sheet:
    """The one sheet, or that with the given name; its cells hold values, or the formulas behind them."""
    from openpyxl import load_workbook

    with warnings.catch_warnings():  # of extensions, such as drop-down lists, which are not read
        warnings.simplefilter("ignore")
        book = load_workbook(content, read_only=True, data_only=not formulas, keep_links=False)
    sheets: dict[str, _Sheet] = {one.title: one for one in book.worksheets}
    if len(sheets) > 1 and sheet not in sheets:
        names = ", ".join(map(shown, sheets))
        raise DataError(f"{path}: has the sheets {names}: name the one with the log in 'data.dataset_split'")
    found = sheets[sheet] if sheet in sheets else next(iter(sheets.values()))
    found.reset_dimensions()  # those in the file may be wrong
    return found


def _has_formulas(archive: zipfile.ZipFile) -> bool:
    """Whether any sheet holds a formula: only then it is read twice, as formulas may lack their values."""
    for name in archive.namelist():
        if name.startswith("xl/worksheets/") and name.endswith(".xml"):
            with archive.open(name) as file:
                end = b""
                while piece := file.read(_PIECE):
                    if _FORMULA.search(end + piece):
                        return True
                    end = piece[-64:]
    return False


def _rows(path: Path, values: _Sheet, formulas: _Sheet | None) -> Iterator[tuple[int, list[str] | CellError]]:
    formula_rows: Iterator[tuple[_Cell, ...]] = repeat(()) if formulas is None else formulas.iter_rows()
    for number, (row, sources) in enumerate(zip(values.iter_rows(), formula_rows, strict=False), start=1):
        if number > _MOST_ROWS:
            raise DataError(f"{path}: has more rows than Excel, which has {_MOST_ROWS:,}")
        try:
            for cell, source in zip(row, sources, strict=False):
                if source.data_type == "f" and cell.value is None:
                    fix = "open the workbook in a spreadsheet program and save it"
                    raise CellError(f"cell {source.coordinate} holds a formula without its value: {fix}")
            cells = [_shown(cell) for cell in row]
        except CellError as error:
            yield number, error
            continue
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            yield number, cells


def _shown(cell: _Cell) -> str:
    value = cell.value
    if value is None:
        return ""
    if cell.data_type == "e":
        raise CellError(f"cell {cell.coordinate} holds the error {value}")
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int | float) and abs(value) >= _EXACT:
        fix = "write it as text, from its source"
        raise CellError(f"cell {cell.coordinate} holds the number {value}, of which a workbook keeps 15 digits: {fix}")
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat()
    return value.isoformat() if isinstance(value, time) else str(value)
