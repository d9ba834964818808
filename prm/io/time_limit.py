"""A limit on the time that a piece of Python may take, on whatever thread it runs."""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_TICK = 0.2  # seconds between two looks of the watcher

_lock = threading.Lock()
# by thread: on the clock, and in processor time, which stands still while other work keeps the process waiting
_deadlines: dict[int, tuple[float, float]] = {}
_watchers: list[threading.Thread] = []  # the one at work


class _LateError(BaseException):
    """Raised in a thread from outside; no `except Exception` on the way holds it."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns. Raises `TimeoutError` where it is not done in time, having had the processor for as long.

    Loops, calls and recursions of Python end within a moment of the limit; a single call into C runs to its end.
    """
    thread = threading.get_ident()
    try:
        _enter(thread, seconds)
        try:
            return work()
        finally:
            _leave(thread)
    except _LateError:
        raise TimeoutError(f"not done after {seconds:g} seconds") from None


def _enter(thread: int, seconds: float) -> None:
    with _lock:
        _deadlines[thread] = time.monotonic() + seconds, time.process_time() + seconds
        if not (_watchers and _watchers[0].is_alive()):  # at first, and in a process that was forked
            _watchers[:] = [threading.Thread(target=_watch, name="deadlines", daemon=True)]
            _watchers[0].start()


def _leave(thread: int) -> None:
    with _lock:
        if _deadlines.pop(thread, None) is None:  # late: what is raised must not hit what comes after
            _raise_in(thread, None)


def _watch() -> None:
    while True:
        time.sleep(_TICK)
        with _lock:
            now, used = time.monotonic(), time.process_time()
            for thread in [t for t, (end, most) in _deadlines.items() if end < now and most < used]:
                del _deadlines[thread]
                _raise_in(thread, _LateError)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    what = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)
