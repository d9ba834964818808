"""Folders that appear complete or not at all, with one command at a time writing to each."""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prm.errors import PrmError
from prm.io.disk import beside, cache_dir, link_tree, make_folder, real, remove, rename, sync_tree
from prm.io.locks import BusyError, held_here, locked

NOTE = "started.json"  # settings and data of an unfinished run, in its work folder
_LONGEST_NAME = 255  # bytes
_WAIT = 5.0  # seconds to wait for another command to rename a folder


@contextmanager
def working_in(folder: str | Path) -> Iterator[Path]:
    """Lock a folder for the block and clean up what a killed command left there; yields the folder, links resolved.

    Raises `BusyError` if another command is writing to it.
    """
    with locked(Path(folder)) as real:
        recover(real)
        with suppress(PrmError):  # a read-only folder can still be read
            remove(_new(real))
            remove(_old(real))
        yield real


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces the target when the block ends without an error.

    A link to the target stays and leads to the new folder. A kill leaves the old folder or the new one; after a kill
    between the two renames, `recover` puts the old one back.
    """
    target = real(target)
    if target.exists() and not target.is_dir():
        raise PrmError(f"{target} is a file, and a folder of this name is to be written: name another one")
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
    """`atomic_folder` filled with links to the files of `source`, which may be the target; replace files to change."""
    with atomic_folder(target) as temporary:
        link_tree(source, temporary)
        yield temporary


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder in the cache, removed after the block; also removes those of killed commands."""
    root = (cache_dir() / "scratch").resolve()
    make_folder(root)
    for leftover in [path for path in root.iterdir() if path.is_dir() and not held_here(path)]:
        with suppress(BusyError), locked(leftover):
            remove(leftover)
    folder = root / uuid.uuid4().hex
    with locked(folder):
        make_folder(folder)
        try:
            yield folder
        finally:
            remove(folder)


def publish(source: Path, target: Path) -> None:
    """Rename a finished folder to the target, replacing a folder there."""
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
    """Put back the old folder after a kill between the two renames of `publish`."""
    target = real(target)
    if target.exists() or not _old(target).exists():
        return
    try:
        with locked(target):
            if not target.exists() and _old(target).exists():
                rename(_old(target), target)
    except BusyError:  # no kill: another command is between its two renames
        deadline = time.monotonic() + _WAIT
        while not target.exists() and time.monotonic() < deadline:
            time.sleep(0.01)


def is_run(folder: str | Path) -> bool:
    """True for a run folder, damaged or not: it has a `run.json`, or a `config.json` with the key `kind`."""
    path = Path(folder).expanduser()
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        config = None
    return os.path.lexists(path / "run.json") or (isinstance(config, dict) and "kind" in config)


def is_begun_or_finished(folder: Path) -> bool:
    """True for a run folder and for the work folder of an unfinished run."""
    return is_run(folder) or (folder / NOTE).is_file()


def refuse_existing(folder: Path, advice: str) -> None:
    """Raise `PrmError`, which ends with the advice, if there is such a folder or file."""
    if folder.exists():
        raise PrmError(f"{folder} exists already: {advice}")


def refuse_replacing_others(folder: Path) -> None:
    """Raise `PrmError` if something stands there that is no run, finished or not, and no empty folder."""
    if folder.exists() and not is_begun_or_finished(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        what = "no run folder" if folder.is_dir() else "a file"
        raise PrmError(f"{folder} is {what}: 'overwrite' replaces runs alone; set another 'output_dir'")


def work_folder(target: Path) -> Path:
    """Folder in which a run trains before it is published to `target`."""
    target = real(target)
    path = target.with_name(target.name + ".partial")
    return path if len(path.name.encode(errors="replace")) <= _LONGEST_NAME else beside(target, ".partial")


def discard_work(work: Path) -> None:
    """Remove a work folder and all that is in it, its note last, so that what a kill leaves is still known as ours.

    Raises `PrmError` if it holds something and is no run, finished or not.
    """
    if not os.path.lexists(work):
        return
    inside = list(work.iterdir()) if work.is_dir() else [work]
    half_written = f".{NOTE}"  # of a note that a kill left
    if not (is_begun_or_finished(work) or all(path.name.startswith(half_written) for path in inside)):
        raise PrmError(f"{work} is no unfinished run, and a run of this name would train there: move it elsewhere")
    for path in inside:
        if path.name != NOTE:
            remove(path)
    remove(work)


def _old(target: Path) -> Path:
    return beside(target, ".old")


def _new(target: Path) -> Path:
    return beside(target, ".new")
