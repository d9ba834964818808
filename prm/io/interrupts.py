"""Ctrl-C in work that can be resumed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def resumable(is_begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """If the block is interrupted, the `KeyboardInterrupt` says what the same command or call keeps of it, if anything.

    Args:
        is_begun: whether there is something to resume.
    """
    try:
        yield
    except KeyboardInterrupt:
        if is_begun():
            raise KeyboardInterrupt(
                "the same command or call goes on: it keeps texts that were read, and the last checkpoint, if any"
            ) from None
        raise KeyboardInterrupt("nothing was kept yet: run it again") from None
