"""Every change on the disk: files and folders are written, named and removed here, and nowhere else.

Each change is one step, announced to `before`: a kill falls before a step or after it. A file takes its name when all
of it is on the disk. What the system refuses (no space, no permission) is a `PrmError` that names the path.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prm.errors import PrmError

_LONGEST_NAME = 200  # bytes: a temporary name must fit where the name itself does


def cache_dir() -> Path:
    """Folder of everything that can be computed again: `$PRM_CACHE`, or `personalized-rm` in the user's cache."""
    if "PRM_CACHE" in os.environ:
        return Path(os.environ["PRM_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "personalized-rm"


def before(step: str, path: Path) -> None:
    """Called before each step with what it does and to which path: tests end a run here, as a kill would."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What the system refuses within the block is a `PrmError` that names the path, the system's where it has one."""
    try:
        yield
    except OSError as error:
        raise PrmError(f"{error.filename or path}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise PrmError(_no_name(path, error)) from None


def make_folder(folder: Path) -> None:
    """The folder and those above it, as far as they are not there."""
    if not os.path.isdir(folder):
        before("make", folder)
        with named(folder):
            folder.mkdir(parents=True, exist_ok=True)


def beside(path: Path, end: str) -> Path:
    """A name for what belongs to a path and lies beside it, hidden."""
    return path.with_name(f".{short(path.name)}{end}")


def short(name: str) -> str:
    """A name with room for more around it: of a long one the beginning, and its digest.

    Raises `PrmError` for what no file or folder can be called.
    """
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError as error:
        raise PrmError(_no_name(Path(name), error)) from None
    if len(raw) <= _LONGEST_NAME:
        return name
    return raw[:_LONGEST_NAME].decode(errors="ignore") + hashlib.sha256(raw).hexdigest()[:8]


def real(path: Path) -> Path:
    """What a path leads to, links followed. Raises `PrmError` for what no file or folder can be called."""
    try:
        return path.resolve()
    except ValueError as error:  # half of a surrogate pair, a NUL
        raise PrmError(_no_name(path, error)) from None


def _no_name(path: Path, error: Exception) -> str:
    return f"{str(path)!r} is no name that a file or folder can have: {error}"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """What `write` makes of a temporary file, under its name at once: whoever else has the old file keeps that.

    Where it fails the old file stays, and nothing else is left behind.
    """
    temporary = beside(path, ".tmp")
    try:
        create(temporary, write)
        rename(temporary, path)
    except Exception:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def create(path: Path, write: Callable[[Path], object]) -> None:
    """A file that is new and, in the end, on the disk."""
    before("write", path)
    with named(path):
        write(path)
        _sync(path)


def append(path: Path, line: bytes) -> None:
    """A line at the end of a file; on the disk when this returns."""
    before("append", path)
    with named(path), path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def truncate(path: Path, size: int) -> None:
    """The first `size` bytes of a file, and no more."""
    before("truncate", path)
    with named(path):
        os.truncate(path, size)


def rename(source: Path, target: Path) -> None:
    """Another name for a file or a folder; a file that has it already is replaced."""
    before("rename", target)
    with named(target):
        os.replace(source, target)
    with suppress(OSError):  # not every system syncs folders
        _sync(target.parent)


def remove(path: Path) -> None:
    """A file, a link or a folder with all that is in it, if it is there; what a link leads to stays."""
    if not os.path.lexists(path):
        return
    before("remove", path)
    with named(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """A file, or a folder that may be there already, in another place."""
    before("copy", target)
    with named(target):
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)


def link_tree(source: Path, target: Path) -> None:
    """The files of a folder in another one that is empty, without copying them; as copies where that cannot be.

    Both names then stand for one file, which nobody may write to in place: a change is a new file that takes the name.
    """
    before("link", target)
    with named(target):
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_link)


def sync_tree(folder: Path) -> None:
    """All of a folder, whoever wrote it, on the disk: what takes a name then is whole after a power cut, too."""
    for path in [*folder.rglob("*"), folder]:
        with suppress(OSError):
            _sync(path)


def _sync(path: Path) -> None:
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except FileExistsError:
        raise  # a copy would be written into whatever lies there
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
