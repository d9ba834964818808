"""Files as lines, plain or packed as .gz, of which none is longer than anything that people write. No torch here."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from prm.errors import DataError

# far beyond any feedback, and little enough that what goes beyond is refused within seconds
LONGEST_LINE = 64 << 20  # bytes of a line, and of a CSV row with its line breaks
LARGEST_WHOLE = 1 << 30  # bytes of what is read at once: Parquet out of a .gz, one JSON value over several lines
# zlib makes a thousand bytes of one; of a log with the same long prompt in every row it makes a hundred
DENSEST, LOOKED_AT = 500, 1 << 28  # bytes out of one byte of a .gz, from so many bytes on
MOST_TOGETHER = 1_000_000  # empty lines, one behind the other, and lines of one CSV row

DAMAGE = (OSError, EOFError, zlib.error)


def open_file(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where its name ends in `.gz`. Raises `DataError`."""
    try:
        return cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb"))
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        raise DataError(f"{path}: cannot be opened: {getattr(error, 'strerror', None) or error}") from None


def lines_of(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Its lines, with their ends.

    Raises `DataError` for a damaged `.gz`, for a line of more than `LONGEST_LINE` bytes, for more than `MOST_TOGETHER`
    empty lines together, and for a `.gz` that unpacks to more than `DENSEST` times its size.
    """
    read, number, empty, most = 0, 0, 0, max(LOOKED_AT, DENSEST * path.stat().st_size)
    while True:
        try:
            line = file.readline(LONGEST_LINE + 1)
        except DAMAGE as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        if not line:
            return
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(f"{path}, line {number}: is longer than {_mib(LONGEST_LINE)}, the most that is read")
        empty = 0 if line.strip() else empty + 1
        if empty > MOST_TOGETHER:
            raise DataError(f"{path}, line {number}: more than {MOST_TOGETHER:,} empty lines, one behind the other")
        read += len(line)
        if read > most and path.suffix == ".gz":
            raise DataError(_dense(path))
        yield line


class CsvText:
    """The lines of a CSV file as text. Raises `DataError` for a row that goes on and on, as behind an open quote."""

    def __init__(self, file: BinaryIO, path: Path):
        self._numbered, self._path = enumerate(lines_of(file, path), start=1), path
        self._first, self._lines, self._bytes = 1, 0, 0

    def begin_row(self) -> None:
        """What is read from here on is another row."""
        self._lines = self._bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, raw = next(self._numbered)
        self._first = number if self._lines == 0 else self._first
        self._lines += 1
        self._bytes += len(raw)
        if self._bytes > LONGEST_LINE or self._lines > MOST_TOGETHER:
            most = f"{_mib(LONGEST_LINE)} or {MOST_TOGETHER:,} lines, the most that is read; is a quote left open?"
            raise DataError(f"{self._path}, line {self._first}: the row is longer than {most}")
        try:
            return raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            fault = f"not UTF-8 text (byte {error.start} of the line)"
            raise DataError(f"{self._path}, line {number}: {fault}") from None


def read_whole(path: Path) -> bytes:
    """All of a file, unpacked. Raises `DataError` for a damaged one, and for more than `LARGEST_WHOLE` bytes."""
    with open_file(path) as file:
        try:
            content = file.read(LARGEST_WHOLE + 1)
        except DAMAGE as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
    if len(content) > LARGEST_WHOLE:
        raise DataError(f"{path}: holds more than {_mib(LARGEST_WHOLE)}, the most that is read at once")
    return content


def _dense(path: Path) -> str:
    return f"{path}: unpacks to more than {DENSEST} times its size: damaged, or made to fill the memory"


def _mib(n: int) -> str:
    return f"{n >> 20} MiB"
