"""Work that does not end is ended, on any thread, and nothing else is."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable

import pytest

from prm.io import time_limit
from prm.io.time_limit import within


def long() -> None:
    """Seconds of work, not for ever: with the fault put back the test fails instead of hanging."""
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        pass


def stubborn() -> None:
    """The same, holding every error that it can."""
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            long()


@pytest.mark.parametrize("work", [long, stubborn])
@pytest.mark.parametrize("thread", ["main", "other"])
def test_what_does_not_end_is_ended_and_the_thread_goes_on(work: Callable[[], None], thread: str) -> None:
    done: list[object] = []

    def run() -> None:
        for _ in range(2):  # the second time, too
            with pytest.raises(TimeoutError):
                within(0.05, work)
        done.append(sum(range(100_000)))

    if thread == "main":
        run()
    else:
        other = threading.Thread(target=run)
        other.start()
        other.join()
    assert done == [4999950000]
    assert time_limit._deadlines == {}


def test_what_is_done_in_time_or_fails_is_left_alone() -> None:
    """Also long after its deadline, when the watcher has looked again."""
    assert within(0.05, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(0.05, lambda: 1 // 0)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass


def test_waiting_for_other_work_is_not_counted() -> None:
    """A process that hardly gets the processor is slow, and its template does not loop."""

    def kept_waiting() -> int:
        for _ in range(10):
            time.sleep(0.06)
        return 3

    assert within(0.1, kept_waiting) == 3


def test_what_is_done_late_is_no_error_for_what_comes_after() -> None:
    """The watcher fires while the last step of the work is one call into C: the error is raised there or not at all."""
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            within(0.01, lambda: hashlib.pbkdf2_hmac("sha256", b"a", b"b", 500_000))  # lets the watcher run
        sum(range(200_000))
