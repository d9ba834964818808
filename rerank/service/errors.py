"""Errors of the service: those with an HTTP status of their own, and a text that the model cannot read."""

import traceback
from pathlib import Path

from prm.errors import DataError, PrmError

_MOST_CAUSES, _MOST_FRAMES = 3, 8


class BusyError(PrmError):
    """More is waiting than the service takes on; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1):
        super().__init__(message)
        self.retry_after = retry_after


class UnknownError(PrmError):
    """There is no such thing: a user, or responses that were shown."""


class UnreadableError(DataError):
    """The model cannot read a text: the one at this position among those of a request."""

    def __init__(self, position: int, message: str):
        super().__init__(message)
        self.position = position


class ConflictError(PrmError):
    """The idempotency key was used for something else, or what was shown has another pick."""


def place_of(error: BaseException) -> str:
    """Kinds of an error and of what led to it, each with where it was raised; no messages: they may hold texts."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < _MOST_CAUSES:
        frames = traceback.extract_tb(seen.__traceback__)[-_MOST_FRAMES:]
        where = ", ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
        parts.append(f"{type(seen).__name__} at {where or 'an unknown place'}")
        seen = seen.__cause__ or seen.__context__
    return "; after ".join(parts)


def reason_of(error: BaseException) -> str:
    """Why a database failed, in one line; of SQLite alone in its own words: PostgreSQL's may quote a user's text."""
    own = getattr(error, "orig", None) or error
    kind = type(own)
    return " ".join(f"{kind.__name__} {own if kind.__module__ == 'sqlite3' else ''}".split())
