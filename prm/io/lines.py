"""Lines of files, plain or `.gz`, with limits on line length and unpacked size. Does not import torch."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from prm.errors import DataError

# far beyond any feedback, and small enough that larger input is refused within seconds
LONGEST_LINE = 64 << 20  # bytes of a line, and of a CSV row with its line breaks
LARGEST_WHOLE = 1 << 30  # bytes of a file that is read at once: Parquet in a .gz, one JSON value over several lines
# zlib packs up to 1,000:1; a log with the same long prompt in every row packs 100:1
DENSEST, LOOKED_AT = 500, 1 << 28  # maximum ratio of unpacked to packed bytes, checked after so many unpacked bytes
MOST_TOGETHER = 1_000_000  # consecutive empty lines, and lines of one CSV row

DAMAGE = (OSError, EOFError, zlib.error)


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked if its name ends in `.gz`. Raises `DataError`."""
    try:
        return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))
    except (OSError, ValueError) as error:  # `ValueError`: a NUL in the name
        raise DataError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def lines_of(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The file's lines, with their line breaks.

    Raises `DataError` for a damaged `.gz`, a line of more than `LONGEST_LINE` bytes, more than `MOST_TOGETHER`
    consecutive empty lines, and a `.gz` that unpacks to more than `DENSEST` times its size.
    """
    read, number, empty, max_read = 0, 0, 0, max(LOOKED_AT, DENSEST * path.stat().st_size)
    while True:
        try:
            line = file.readline(LONGEST_LINE + 1)
        except DAMAGE as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        if not line:
            return
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(f"{path}, line {number}: is longer than {_mib(LONGEST_LINE)}, the limit for a line")
        empty = 0 if line.strip() else empty + 1
        if empty > MOST_TOGETHER:
            raise DataError(f"{path}, line {number}: more than {MOST_TOGETHER:,} empty lines in a row")
        read += len(line)
        if read > max_read and path.suffix == ".gz":
            raise DataError(_dense(path))
        yield line


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
            fault = f"not UTF-8 text (byte {error.start} of the line)"
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
