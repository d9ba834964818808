"""A limit on the time that Python code may take, on any thread."""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_TICK = 0.2  # seconds between two checks by the watcher

_lock = threading.Lock()
# by thread: wall-clock time, and processor time, which does not pass while the process waits for other work
_deadlines: dict[int, tuple[float, float]] = {}
_watchers: list[threading.Thread] = []  # the one that runs


class _LateError(BaseException):
    """Raised in a thread from outside; not an `Exception`, so that `except Exception` does not catch it."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return `work()`. Raises `TimeoutError` once it exceeds `seconds` in both wall-clock and processor time.

    Python code ends soon after the limit; a single call into C runs to its end.
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
        if not (_watchers and _watchers[0].is_alive()):  # on first use, and in a forked process
            _watchers[:] = [threading.Thread(target=_watch, name="deadlines", daemon=True)]
            _watchers[0].start()


def _leave(thread: int) -> None:
    with _lock:
        if _deadlines.pop(thread, None) is None:  # late: the pending error must not hit later code
            _raise_in(thread, None)


def _watch() -> None:
    while True:
        time.sleep(_TICK)
        with _lock:
            now, used = time.monotonic(), time.process_time()
            for thread in [t for t, (end, max_used) in _deadlines.items() if end < now and max_used < used]:
                del _deadlines[thread]
                _raise_in(thread, _LateError)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    exception = ctypes.py_object(error) if error is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)
