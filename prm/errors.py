"""Errors that a user can mend: the command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class PrmError(ValueError):
    """Something the caller gave is wrong; the message names it and says what to do."""


class DataError(PrmError):
    """A row or a file of feedback is wrong; the message names file, line and fault."""


class CheckpointError(PrmError):
    """A run folder is incomplete, damaged, or does not fit the backbone it is loaded with."""


def closest(given: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of the known words that a mistyped one most likely means, case aside; `None` where none is close."""
    folded = {word.casefold(): word for word in known}
    found = difflib.get_close_matches(given.casefold(), folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else None
