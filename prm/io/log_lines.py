"""Log messages as lines on stderr: of commands, and of calls from Python that take long."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PACKAGES = ("prm", "rerank", "policy")


class StderrLines(logging.Handler):
    """Writes to the current `sys.stderr`, which may change between the commands of one process, as in a notebook."""

    def emit(self, record: logging.LogRecord) -> None:
        print_line(self.format(record))


def print_line(line: str) -> None:
    """Print one line on stderr, if it is open."""
    with suppress(OSError):
        print("\\n".join(line.splitlines()), file=sys.stderr)  # file names may contain line ends


@contextmanager
def log_shown() -> Iterator[None]:
    """Print what our packages log within the block, as a command does, unless the caller has set up logging.

    A set-up is a handler, or a level of `logging.getLogger("prm")`: `WARNING` leaves out all but warnings.
    """
    loggers = [
        one for one in map(logging.getLogger, _PACKAGES) if one.level == logging.NOTSET and not one.hasHandlers()
    ]
    handler = StderrLines()
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(logging.INFO)
    try:
        yield
    finally:
        for one in loggers:
            one.removeHandler(handler)
            one.setLevel(logging.NOTSET)
