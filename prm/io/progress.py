"""Progress bars, and progress lines in logs."""

import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn, TypeAlias, TypedDict, TypeVar, Unpack, overload

from tqdm import tqdm

from prm.errors import plural

logger = logging.getLogger(__name__)

T = TypeVar("T")

Bar: TypeAlias = "tqdm[NoReturn]"  # one that is moved by `update`

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # tqdm's without the rate
_SILENT = ContextVar("_SILENT", default=False)
_AFTER, _EVERY = 2.0, 60.0  # seconds before anything is shown, and between lines in a log


class _Settings(TypedDict, total=False):
    desc: str
    unit: str
    total: int
    initial: int
    mininterval: float
    disable: bool


@overload
def progress(items: Iterable[T], **settings: Unpack[_Settings]) -> "tqdm[T]": ...


@overload
def progress(items: None = None, **settings: Unpack[_Settings]) -> Bar: ...


def progress(items: Iterable[T] | None = None, **settings: Unpack[_Settings]) -> "tqdm[T] | Bar":
    """A `tqdm` over the items, or up to its `total`: a bar in a terminal or a notebook, otherwise lines in the log.

    Both begin after two seconds; log lines follow once a minute.
    """
    if _SILENT.get():
        settings["disable"] = True  # otherwise tqdm asks the environment variable TQDM_DISABLE
    if sys.stderr.isatty() or _is_notebook():
        # some terminals (`script`, containers) report 0 columns and rows, in which tqdm would draw nothing
        size = shutil.get_terminal_size()
        columns, rows = size.columns - 1, size.lines
        # a bar below another one does not stay
        return tqdm(items, delay=_AFTER, leave=None, ncols=columns, nrows=rows, bar_format=_BAR, **settings)
    units = plural(settings.get("unit", "step"))
    lines = f"{{desc}}: {{n_fmt}} of {{total_fmt}} {units}, {{elapsed}} gone, {{remaining}} to go{{postfix}}"
    return tqdm(items, delay=_AFTER, file=_Log(), leave=False, bar_format=lines, **settings)


@contextmanager
def without_bars(silent: bool = True) -> Iterator[None]:
    """Show no progress within the block if it is to be `silent`."""
    token = _SILENT.set(silent or _SILENT.get())
    try:
        yield
    finally:
        _SILENT.reset(token)


def _is_notebook() -> bool:
    """Whether stderr is that of a notebook, which says that it is no terminal, but moves the cursor as one does."""
    return type(sys.stderr).__module__.startswith("ipykernel.")


def duration(seconds: float) -> str:
    """A duration in words: "40 seconds", "3 minutes", "2.5 hours"."""
    for size, unit in ((3600.0, "hour"), (60.0, "minute")):
        if seconds >= 1.5 * size:
            n = f"{seconds / size:.1f}".removesuffix(".0") if seconds < 10 * size else f"{seconds / size:.0f}"
            return f"{n} {unit}s"
    return f"{max(1, round(seconds))} second{'s' if round(seconds) > 1 else ''}"


class _Log:
    """File-like object that logs what tqdm writes."""

    def __init__(self) -> None:
        self._next = 0.0

    def write(self, text: str) -> None:
        if text.strip() and time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            logger.info("%s", text.strip())

    def flush(self) -> None:
        """Do nothing: log records are not buffered here."""
