"""Folders that appear at once or not at all, one command at a time in each."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prm.errors import PrmError
from prm.io.disk import beside, cache_dir, link_tree, make_folder, real, remove, rename, sync_tree
from prm.io.locks import BusyError, held_here, locked

_LONGEST_NAME = 255  # bytes
_WAIT = 5.0  # seconds, for another command to rename a folder


@contextmanager
def working_in(folder: str | Path) -> Iterator[Path]:
    """No other command writes to the folder within the block; gives the folder that a link may lead to.

    What a killed command left is put right first. Raises `BusyError` where another command is at work there.
    """
    with locked(Path(folder)) as real:
        recover(real)
        with suppress(PrmError):  # a folder that may only be read is read
            remove(_new(real))
            remove(_old(real))
        yield real


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the target's place when the block ends without an error.

    A folder already there is replaced; a link to one stays, and leads to the new one. A kill leaves the old folder or
    the new one; between the two renames the old one waits beside it, and `recover` puts it back.
    """
    target = real(target)
    temporary = _new(target)
    remove(temporary)
    make_folder(temporary)
    try:
        yield temporary
        publish(temporary, target)
    except (Exception, KeyboardInterrupt):
        with suppress(PrmError):
            remove(temporary)
        raise


@contextmanager
def changed_folder(source: Path, target: Path) -> Iterator[Path]:
    """As `atomic_folder`, with the files of another folder, or of the same, in it; those that change get new files."""
    with atomic_folder(target) as temporary:
        link_tree(source, temporary)
        yield temporary


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in the cache, for the length of the block; what killed commands left of theirs goes, too."""
    root = (cache_dir() / "scratch").resolve()
    make_folder(root)
    for left in [path for path in root.iterdir() if path.is_dir() and not held_here(path)]:
        with suppress(BusyError), locked(left):
            remove(left)
    folder = root / uuid.uuid4().hex
    with locked(folder):
        make_folder(folder)
        try:
            yield folder
        finally:
            remove(folder)


def publish(source: Path, target: Path) -> None:
    """Rename a finished folder to its place, replacing what is there."""
    target = real(target)
    old = _old(target)
    recover(target)
    remove(old)
    sync_tree(source)
    replaces = target.exists()
    if replaces:
        rename(target, old)
    try:
        rename(source, target)
    except Exception:
        if replaces:
            rename(old, target)
        raise
    remove(old)


def recover(target: Path) -> None:
    """Put back the old folder where a kill fell between the two renames of `publish`."""
    target = real(target)
    if target.exists() or not _old(target).exists():
        return
    try:
        with locked(target):
            if not target.exists() and _old(target).exists():
                rename(_old(target), target)
    except BusyError:  # nobody was killed: another command is between its two renames
        given_up = time.monotonic() + _WAIT
        while not target.exists() and time.monotonic() < given_up:
            time.sleep(0.01)


def work_folder(target: Path) -> Path:
    """Where a run trains before its folder appears."""
    target = real(target)
    name = target.with_name(target.name + ".partial")
    return name if len(name.name.encode(errors="replace")) <= _LONGEST_NAME else beside(target, ".partial")


def _old(target: Path) -> Path:
    return beside(target, ".old")


def _new(target: Path) -> Path:
    return beside(target, ".new")
