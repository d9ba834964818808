"""Errors that a user can mend: the command line prints them as one line, without a traceback."""

import difflib
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any

_MOST_LISTED = 12  # names that one line can hold
_EXAMPLES = 3
_LONGEST_SHOWN = 200  # characters of a value in an error message


class PrmError(ValueError):
    """Something the caller gave is wrong; the message names it and says what to do."""


class DataError(PrmError):
    """A row or a file of feedback is wrong; the message names file, line and fault."""


class CheckpointError(PrmError):
    """A run folder is incomplete, damaged, or does not fit the backbone it is loaded with."""


def fold(text: str) -> str:
    """The text without what the eye does not see: equal for texts that differ in case, white space, Unicode's normal
    forms or invisible characters (zero-width ones, soft hyphens, marks of direction, variation selectors)."""
    if text.isascii() and text.isprintable():
        return " ".join(text.split()).casefold()
    seen = "".join(char for char in unicodedata.normalize("NFKC", text) if char.isspace() or not _is_invisible(char))
    return unicodedata.normalize("NFKC", " ".join(seen.split()).casefold())


def _is_invisible(char: str) -> bool:
    return unicodedata.category(char) in ("Cf", "Cc") or "\ufe00" <= char <= "\ufe0f"


def closest(given: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of the known words that a mistyped one most likely means, whatever it looks alike in (`fold`).

    `None` where none is close.
    """
    folded = {fold(word): word for word in known}
    found = difflib.get_close_matches(fold(given), folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else None


def hint(given: str, known: Collection[str], what: str) -> str:
    """What to put behind "there is no such": the closest of the known names, if one is close, and how many there are.

    Args:
        what: they are, as in "people".
    """
    near = closest(given, known)
    return (f"; did you mean {near!r}?" if near else "") + f" ({len(known):,} {what} known)"


def listed(names: Collection[str]) -> str:
    """The names where they are few, else how many."""
    return ", ".join(names) if len(names) <= _MOST_LISTED else f"{len(names):,} others"


def some(names: Collection[str]) -> str:
    """The first few of the names in their order, and how many more there are."""
    first = sorted(names)[:_EXAMPLES]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more:,} more" if more else "")


def shorten(text: str) -> str:
    """The text, cut where it is longer than an error message should be."""
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def shown(value: Any) -> str:
    """The value itself in an error message, cut where it is long."""
    return shorten(repr(value))
