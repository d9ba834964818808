"""Lines of files, plain, `.gz` or `.bz2`, with limits on line length and unpacked size. Does not import torch."""

import bz2
import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal, cast

from prm.errors import DataError

# far beyond any feedback, and small enough that larger input is refused within seconds
LONGEST_LINE = 64 << 20  # bytes of a line, and of a CSV row with its line breaks
LARGEST_WHOLE = (
    1 << 30
)  # bytes of a file that is read at once: Parquet or Excel in a .gz, one JSON value over several lines
# zlib packs up to 1,000:1; a log with the same long prompt in every row packs 100:1
DENSEST, LOOKED_AT = 500, 1 << 28  # maximum ratio of unpacked to packed bytes, checked after so many unpacked bytes
MOST_TOGETHER = 1_000_000  # consecutive empty lines, and lines of one CSV row

DAMAGE = (OSError, EOFError, zlib.error)
_UNPACK: dict[str, Callable[[Path, Literal["rb"]], object]] = {".gz": gzip.open, ".bz2": bz2.open}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# how files of other kinds begin, what they are, and what to do; {path} is the file's
_OTHER_FILES = {
    b"PK\x03\x04": "a ZIP archive or a spreadsheet: unpack it, or save the sheet as .xlsx under that name",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Excel workbook (.xls), or one with a password: save it as .xlsx",
    b"\x1f\x8b\x08": "packed by gzip: let its name end in .gz",
    b"\xfd7zXZ\x00": "packed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it",
    b"PAR1\x15": "a Parquet file: let its name end in .parquet",
    b"SQLite format 3\x00": "an SQLite database: write sqlite:///{path} if it is the store of 'rerank serve', "
    "else export the table as CSV",
    b"version https://git-lfs": "a Git LFS pointer in place of the file: run 'git lfs pull'",
    b"<!doctype html": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
} | {b"BZh%d1AY&SY" % level: "packed by bzip2: let its name end in .bz2" for level in range(1, 10)}

_LONGEST_START = max(map(len, _OTHER_FILES))


def is_packed(path: Path) -> bool:
    """Whether the file's name says that it is packed (`.gz`, `.bz2`)."""
    return path.suffix in _UNPACK


def unpacked_suffix(path: Path) -> str:
    """The ending of the file's name in lower case, without that of its packing: `.csv` of `log.CSV.gz`."""
    return (Path(path.stem) if is_packed(path) else path).suffix.lower()


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked if its name ends in `.gz` or `.bz2`. Raises `DataError`."""
    try:
        return cast(BinaryIO, _UNPACK[path.suffix](path, "rb") if is_packed(path) else path.open("rb"))
    except (OSError, ValueError) as error:  # `ValueError`: a NUL in the name
        raise DataError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def lines_of(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The file's lines in UTF-8, with their line breaks. UTF-16 with a byte order mark is converted.

    Raises `DataError` for a file that holds no text but is of a known other kind, a damaged `.gz` or `.bz2`, a line of
    more than `LONGEST_LINE` bytes, more than `MOST_TOGETHER` consecutive empty lines, and a packed file that unpacks to
    more than `DENSEST` times its size.
    """
    if _start(file, path)[:2] not in _UTF16:
        yield from _within_limits(file.readline, path)
        return
    text = io.TextIOWrapper(file, encoding="utf-16", newline="\n")
    try:
        yield from _within_limits(lambda limit: text.readline(limit).encode(), path)
    finally:
        with suppress(ValueError):  # closed by now
            text.detach()  # the file is the caller's: the wrapper would close it


def _within_limits(readline: Callable[[int], bytes], path: Path) -> Iterator[bytes]:
    read, number, empty, max_read = 0, 0, 0, max(LOOKED_AT, DENSEST * path.stat().st_size)
    while True:
        try:
            line = readline(LONGEST_LINE + 1)
        except DAMAGE as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        except UnicodeError as error:
            raise DataError(
                f"{path}, line {number + 1}: not UTF-16 text, as the file's beginning says: {error}"
            ) from None
        if not line:
            return
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(f"{path}, line {number}: is longer than {_mib(LONGEST_LINE)}, the limit for a line")
        empty = 0 if line.strip() else empty + 1
        if empty > MOST_TOGETHER:
            raise DataError(f"{path}, line {number}: more than {MOST_TOGETHER:,} empty lines in a row")
        read += len(line)
        if read > max_read and is_packed(path):
            raise DataError(_dense(path))
        yield line


def _start(file: BinaryIO, path: Path) -> bytes:
    """The file's first bytes; none if it is damaged. Raises `DataError` for a known kind of file that is no text."""
    try:
        start = cast(io.BufferedReader, file).peek(_LONGEST_START)[:_LONGEST_START]
    except DAMAGE:
        return b""  # reading the first line says what is wrong
    for beginning, what in _OTHER_FILES.items():
        if start[: len(beginning)].lower() == beginning.lower():
            raise DataError(f"{path}: is {what.replace('{path}', str(path))}")
    return start


class CsvText:
    """The lines of a CSV file as text. Raises `DataError` for a row beyond the limits, as after an open quote."""

    def __init__(self, file: BinaryIO, path: Path):
        self._numbered, self._path = enumerate(lines_of(file, path), start=1), path
        self._first, self._lines, self._bytes = 1, 0, 0

    def begin_row(self) -> None:
        """Start counting the lines and bytes of a new row."""
        self._lines = self._bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, raw = next(self._numbered)
        self._first = number if self._lines == 0 else self._first
        self._lines += 1
        self._bytes += len(raw)
        if self._bytes > LONGEST_LINE or self._lines > MOST_TOGETHER:
            limit = f"{_mib(LONGEST_LINE)} or {MOST_TOGETHER:,} lines, the limit for a row; is a quote left open?"
            raise DataError(f"{self._path}, line {self._first}: the row is longer than {limit}")
        try:
            return raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            fault = f"not UTF-8 text (byte {error.start} of the line); in Excel, save as 'CSV UTF-8'"
            raise DataError(f"{self._path}, line {number}: {fault}") from None


def read_whole(path: Path) -> bytes:
    """A file's content, unpacked. Raises `DataError` if it is damaged or has more than `LARGEST_WHOLE` bytes."""
    with open_file(path) as file:
        try:
            content = file.read(LARGEST_WHOLE + 1)
        except DAMAGE as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
    if len(content) > LARGEST_WHOLE:
        raise DataError(f"{path}: holds more than {_mib(LARGEST_WHOLE)}, the limit of what is read at once")
    return content


def _dense(path: Path) -> str:
    return f"{path}: unpacks to more than {DENSEST} times its size: damaged, or made to fill the memory"


def _mib(n: int) -> str:
    return f"{n >> 20} MiB"
