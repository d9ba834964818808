"""What commands print: one line for what the user can mend, and an output that may be closed at any time."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prm.errors import PrmError

MENDABLE, CLOSED, STOPPED = 2, 141, 130  # exit codes: shells have the last two for SIGPIPE and SIGINT


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What the user can mend within the block is one line on stderr and exit code 2, without a traceback.

    So is what the system refuses. Where nobody reads the output any more, the block ends without a line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal, or a name of a file, may not know all letters
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise SystemExit(CLOSED) from None
    except PrmError as error:
        _say(f"error: {error}")
        raise SystemExit(MENDABLE) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _say(f"error: {place}{error.strerror or error}")
        raise SystemExit(MENDABLE) from None
    except KeyboardInterrupt:
        _say("stopped")
        raise SystemExit(STOPPED) from None
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            discard_output()


@contextmanager
def printing() -> Iterator[None]:
    """What is printed within the block may find nobody who reads it: what comes behind it is done all the same."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()


def log_to_stderr() -> None:
    """What is logged is printed as it is, unless whoever runs this process has a log of their own."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_Stderr()])


class _Stderr(logging.Handler):
    """Writes to what stderr is by then: it may be another one for each command of a process, as in a notebook."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(self.format(record))


def discard_output() -> None:
    """Whatever is printed from now on goes nowhere, and fails no more."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    with suppress(OSError):
        print("\\n".join(line.splitlines()), file=sys.stderr)  # names of files may hold line ends
