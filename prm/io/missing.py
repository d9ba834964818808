"""What is said of a file or folder that is not there."""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from prm.errors import closest

_LOOKED_AT = 10_000  # names beside the missing one


def no_such(path: str | Path, what: str) -> str:
    """The message for a path where nothing is, with the closest name beside it.

    Args:
        what: "file", "folder" or "file or folder"; only such names are suggested.
    """
    given = Path(path)
    near = closest(given.name, _beside(given.expanduser(), what))
    return f"{path}: no such {what}" + (f"; did you mean {str(given.with_name(near))!r}?" if near else "")


def _beside(path: Path, what: str) -> list[str]:
    """Names in the path's folder."""
    fits: Callable[[Path], bool] = {"file": Path.is_file, "folder": Path.is_dir}.get(what, Path.exists)
    with suppress(OSError, ValueError):
        return [other.name for other in islice(path.parent.iterdir(), _LOOKED_AT) if fits(other)]
    return []
