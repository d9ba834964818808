"""Errors that a user can fix; the command line prints them as one line, without a traceback."""

import difflib
import unicodedata
from collections.abc import Collection, Iterable, Sequence

_MAX_LISTED = 12  # names listed in one line
_LOOKED_AT = 5  # names close to a mistyped one whose parts are compared
_EXAMPLES = 3
_MAX_SHOWN = 200  # characters of a value in an error message


class PrmError(ValueError):
    """An argument, setting or file is wrong; the message names it and says what to do."""


class DataError(PrmError):
    """A row or a file of feedback is wrong; the message names file, line and fault."""


class CheckpointError(PrmError):
    """A run folder is incomplete or damaged, or does not fit the backbone that it is loaded with."""


def fold(text: str) -> str:
    """A key that is equal for texts that differ only in case, white space, Unicode normal form or invisible characters.

    Invisible are zero-width characters, soft hyphens, direction marks and variation selectors.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split()).casefold()
    visible = "".join(char for char in unicodedata.normalize("NFKC", text) if char.isspace() or not _is_invisible(char))
    return unicodedata.normalize("NFKC", " ".join(visible.split()).casefold())


def _is_invisible(char: str) -> bool:
    return unicodedata.category(char) in ("Cf", "Cc") or "\ufe00" <= char <= "\ufe0f"


def closest(given: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word closest to a mistyped one, compared by `fold`; `None` if none is close.

    Parts between dots are compared one by one: keys of one group (`search.`) are not alike because of the group.
    """
    word, folded = fold(given), {fold(word): word for word in known}
    near = difflib.get_close_matches(word, folded, n=_LOOKED_AT, cutoff=cutoff)
    return next((folded[other] for other in near if _alike_in_parts(word, other, cutoff)), None)


def _alike_in_parts(given: str, known: str, cutoff: float) -> bool:
    parts, others = given.split("."), known.split(".")
    if len(parts) != len(others):
        return True
    return all(
        f"_{part}_" in f"_{other}_" or difflib.SequenceMatcher(None, other, part).ratio() >= cutoff
        for part, other in zip(parts, others, strict=True)
    )


def meant(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """End of a message about an unknown name or value: the closest known one, if one is close."""
    near = closest(given, known, cutoff)
    return _question([near] if near else [])


def meant_key(given: str, keys: Collection[str], before: str = "") -> str:
    """End of a message about an unknown setting: keys that end in it, as `optim.eval_steps` in `steps`, or the closest.

    Args:
        before: what stands before each key in the message, such as "--".
    """
    similar = [key for key in keys if key.endswith((f".{given}", f"_{given}"))]
    if not similar and (near := closest(given, keys)):
        similar = [near]
    return _question([f"{before}{key}" for key in similar])


def _question(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def hint(given: str, known: Collection[str], what: str) -> str:
    """End of a message about an unknown name: the closest known name, if one is close, and the number of known names.

    Args:
        what: the kind of names, such as "users".
    """
    return meant(given, known) + f" ({len(known):,} {what} known)"


def counted(number: int, noun: str) -> str:
    """A number of things, as in "1 user" and "1,200 users"."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The plural of a regular noun: users, batches."""
    return noun + ("es" if noun.endswith(("ch", "sh", "s", "x")) else "s")


def listed(names: Collection[str]) -> str:
    """The names if they are few, otherwise their number."""
    return ", ".join(names) if len(names) <= _MAX_LISTED else f"{len(names):,} others"


def some(names: Collection[str]) -> str:
    """The first few names in sorted order, and the number of others."""
    first = sorted(names)[:_EXAMPLES]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more:,} more" if more else "")


def shorten(text: str) -> str:
    """The text, cut to a length that fits an error message."""
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def shown(value: object) -> str:
    """The value's `repr` for an error message, cut if it is long."""
    return shorten(repr(value))
