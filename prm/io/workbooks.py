"""Rows of an Excel workbook (.xlsx), as the text that Excel shows. Standard library only."""

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from prm.errors import DataError, shown
from prm.io.lines import LARGEST_WHOLE, is_packed, read_whole

_FAULTS = (
    zipfile.BadZipFile,
    ElementTree.ParseError,
    KeyError,
    IndexError,
    ValueError,
    RuntimeError,
    zlib.error,
    OSError,
)
_RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_STRICT_RELATION = "{http://purl.oclc.org/ooxml/officeDocument/relationships}id"
_DATE_FORMATS = {*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)}  # built in: dates and times
_NOT_CODE = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]|_.|\*.')  # literal text, colours and padding in a number format


class CellError(ValueError):
    """A cell holds an error value, such as #N/A."""


def sheet_rows(path: Path, sheet: str) -> Iterator[tuple[int, list[str] | CellError]]:
    """(row number, cells) of each row of a sheet that is not empty; cells are text, "" where there is nothing.

    Dates become ISO 8601 text, true and false TRUE and FALSE; formulas have the value that was saved with them.

    Args:
        sheet: which sheet of several; a workbook with one sheet is read whatever it is called.

    Raises `DataError` if the file is no workbook, is damaged or too large, or has several sheets and none of that name.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_whole(path)) if is_packed(path) else path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_WHOLE:
                raise DataError(f"{path}: unpacks to more than {LARGEST_WHOLE >> 20} MiB, the limit for a workbook")
            yield from _rows(archive, path, sheet)
    except DataError:
        raise
    except _FAULTS as error:
        raise DataError(f"{path}: not an Excel workbook that can be read: {error or type(error).__name__}") from None


def _rows(archive: zipfile.ZipFile, path: Path, sheet: str) -> Iterator[tuple[int, list[str] | CellError]]:
    book = _tree(archive, "xl/workbook.xml")
    since_1904 = any(e.get("date1904") in ("1", "true") for e in _all(book, "workbookPr"))
    strings = [_text(item) for item in _all(_tree(archive, "xl/sharedStrings.xml"), "si")]
    dates = _date_styles(_tree(archive, "xl/styles.xml"))
    number = 0
    with archive.open(_sheet_file(archive, book, path, sheet)) as file:
        for _, element in ElementTree.iterparse(file):
            if _name(element) != "row":
                continue
            number = int(element.get("r", number + 1))
            try:
                cells: list[str] = []
                for cell in _all(element, "c"):
                    place = _column(cell.get("r", "")) if cell.get("r") else len(cells)
                    cells += [""] * (place + 1 - len(cells))
                    cells[place] = _shown(cell, strings, dates, since_1904)
                while cells and not cells[-1]:
                    cells.pop()
                if cells:
                    yield number, cells
            except CellError as error:
                yield number, error
            element.clear()


def _sheet_file(archive: zipfile.ZipFile, book: Element, path: Path, sheet: str) -> str:
    """The name in the archive of the one sheet, or of that with the given name."""
    ids = {e.get("name", ""): e.get(_RELATION) or e.get(_STRICT_RELATION) for e in _all(book, "sheet")}
    if len(ids) > 1 and sheet not in ids:
        names = ", ".join(map(shown, ids))
        raise DataError(f"{path}: has the sheets {names}: name the one with the log in 'data.dataset_split'")
    wanted = ids[sheet] if sheet in ids else next(iter(ids.values()))
    targets = {
        e.get("Id"): e.get("Target", "") for e in _all(_tree(archive, "xl/_rels/workbook.xml.rels"), "Relationship")
    }
    target = targets[wanted]
    return target[1:] if target.startswith("/") else f"xl/{target}"


def _shown(cell: Element, strings: list[str], dates: set[int], since_1904: bool) -> str:
    kind, value = cell.get("t", "n"), next((e.text or "" for e in _all(cell, "v")), "")
    if kind == "e":
        raise CellError(f"cell {cell.get('r', '')} holds the error {value}")
    if kind == "inlineStr":
        return _text(cell)
    if kind == "s":
        return strings[int(value)]
    if kind == "b":
        return "TRUE" if value == "1" else "FALSE"
    if kind == "n" and value and int(cell.get("s", 0)) in dates:
        return _date(float(value), since_1904)
    return value


def _date(days: float, since_1904: bool) -> str:
    start = datetime(1904, 1, 1) if since_1904 else datetime(1899, 12, 30 if days >= 60 else 31)  # there is no day 60
    moment = start + timedelta(seconds=round(days * 86_400))
    return moment.date().isoformat() if days == int(days) else moment.isoformat()


def _date_styles(styles: Element | None) -> set[int]:
    """The numbers of the cell styles that show a number as a date."""
    codes = {int(e.get("numFmtId", 0)): e.get("formatCode", "") for e in _all(styles, "numFmt")}
    dates = _DATE_FORMATS | {i for i, code in codes.items() if re.search("[ymdhs]", _NOT_CODE.sub("", code.lower()))}
    formats = [e for group in _all(styles, "cellXfs") for e in group]
    return {i for i, style in enumerate(formats) if int(style.get("numFmtId", 0)) in dates - {0}}


def _column(cell: str) -> int:
    """The position, from 0, of the column of a cell: 27 for "AB3"."""
    place = 0
    for letter in re.sub(r"[^A-Z]", "", cell.upper()):
        place = place * 26 + ord(letter) - ord("A") + 1
    return place - 1


def _text(element: Element) -> str:
    """All runs of text, without the phonetic hints of Japanese."""
    hints = {id(t) for hint in _all(element, "rPh") for t in hint.iter()}
    return "".join(e.text or "" for e in _all(element, "t") if id(e) not in hints)


def _tree(archive: zipfile.ZipFile, name: str) -> Element:
    """The XML of an entry; an empty element if the archive lacks it."""
    return ElementTree.fromstring(archive.read(name)) if name in archive.namelist() else Element("none")


def _all(element: Element | None, name: str) -> list[Element]:
    """Elements with that name, whatever their namespace."""
    return [] if element is None else [e for e in element.iter() if _name(e) == name]


def _name(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]
