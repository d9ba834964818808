"""The output of commands: errors in one line, and an output stream that may be closed at any time."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prm.errors import PrmError
from prm.io.log_lines import StderrLines, print_line

USER_ERROR, CLOSED, STOPPED = 2, 141, 130  # exit codes: shells have the last two for SIGPIPE and SIGINT


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print a `PrmError` or `OSError` of the block as one line on stderr, without a traceback, and exit with code 2.

    If the output is closed, the block ends without a line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every terminal or file name can encode all characters
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise SystemExit(CLOSED) from None
    except PrmError as error:
        print_line(f"error: {error}")
        raise SystemExit(USER_ERROR) from None
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print_line(f"error: {place}{error.strerror or error}")
        raise SystemExit(USER_ERROR) from None
    except KeyboardInterrupt as stop:
        print_line("; ".join(["stopped", *map(str, stop.args)]))
        raise SystemExit(STOPPED) from None
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            discard_output()


@contextmanager
def printing() -> Iterator[None]:
    """Ignore a closed output within the block, so that the code after it still runs."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()


def log_to_stderr() -> None:
    """Print log messages as they are, unless this process has a logging configuration already."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[StderrLines()])


def discard_output() -> None:
    """Redirect all further output to the null device, so that printing cannot fail."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
