"""Folders that appear at once or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the target's place when the block ends without an error.

    A folder already there is replaced. A kill leaves the old folder or the new one; between the two
    renames the old one waits beside it, and `recover` puts it back.
    """
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    publish(temporary, target)


def link_tree(source: Path, target: Path) -> None:
    """The files of a folder in another one that is empty, without copying them; as copies where that cannot be.

    Both names then stand for one file, which nobody may write to in place: a change is a new file that takes the name,
    as `prm.files` writes.
    """
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except FileExistsError:
        raise  # a copy would be written into whatever lies there
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def publish(source: Path, target: Path) -> None:
    """Rename a finished folder to its place, replacing what is there."""
    old = _old(target)
    recover(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Put back the old folder where a kill fell between the two renames of `publish`."""
    if not target.exists() and _old(target).exists():
        _old(target).rename(target)


def work_folder(target: Path) -> Path:
    """Where a run trains before its folder appears."""
    return target.with_name(target.name + ".partial")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
