"""All writes to the disk: files and folders are written, renamed and removed by this module only.

Each change is one step, announced to `before`: a kill falls before or after a step, never within. A file gets its name
only when all of it is on the disk. What the system refuses (no space, no permission) is a `PrmError` naming the path.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prm.errors import PrmError

_LONGEST_NAME = 200  # bytes: leaves space for what temporary names add


def cache_dir() -> Path:
    """Folder of files that can be recomputed: `$PRM_CACHE`, or `personalized-rm` in the user's cache."""
    if "PRM_CACHE" in os.environ:
        return Path(os.environ["PRM_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "personalized-rm"


def before(step: str, path: Path) -> None:
    """Hook called before each step with its kind and path; tests end a run here, as a kill would."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn an `OSError` within the block into a `PrmError` that names the error's file, or else `path`."""
    try:
        yield
    except OSError as error:
        raise PrmError(f"{error.filename or path}: cannot be written: {error.strerror or error}") from error
    except UnicodeEncodeError as error:
        raise PrmError(_no_name(path, error)) from None


def make_folder(folder: Path) -> None:
    """Create the folder and its parents if they do not exist."""
    if not os.path.isdir(folder):
        before("make", folder)
        with named(folder):
            folder.mkdir(parents=True, exist_ok=True)


def beside(path: Path, end: str) -> Path:
    """A hidden path in the same folder: `.NAME` and `end`."""
    return path.with_name(f".{short(path.name)}{end}")


def short(name: str) -> str:
    """The name, or the beginning and the digest of a long one, so that more can be added to it.

    Raises `PrmError` if no file or folder can have this name.
    """
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError as error:
        raise PrmError(_no_name(Path(name), error)) from None
    if len(raw) <= _LONGEST_NAME:
        return name
    return raw[:_LONGEST_NAME].decode(errors="ignore") + hashlib.sha256(raw).hexdigest()[:8]


def real(path: Path) -> Path:
    """The absolute path with links resolved. Raises `PrmError` if no file or folder can have this name."""
    try:
        return path.resolve()
    except ValueError as error:  # a lone surrogate or a NUL
        raise PrmError(_no_name(path, error)) from None


def _no_name(path: Path, error: Exception) -> str:
    return f"{str(path)!r} is not a valid name for a file or folder: {error}"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write` fills a temporary file, which then replaces `path`.

    Hard links to the old file keep the old content. If writing fails, the old file stays and the temporary file is
    removed.
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
    """Write a new file and sync it to the disk."""
    before("write", path)
    with named(path):
        write(path)
        _sync(path)


def append(path: Path, line: bytes) -> None:
    """Append a line to a file and sync it to the disk."""
    before("append", path)
    with named(path), path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def truncate(path: Path, size: int) -> None:
    """Cut a file to its first `size` bytes."""
    before("truncate", path)
    with named(path):
        os.truncate(path, size)


def rename(source: Path, target: Path) -> None:
    """Rename a file or a folder, replacing a file at `target`."""
    before("rename", target)
    with named(target):
        os.replace(source, target)
    with suppress(OSError):  # not every system syncs folders
        _sync(target.parent)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with its content, if it exists; the target of a link stays."""
    if not os.path.lexists(path):
        return
    before("remove", path)
    with named(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder (into `target` if it exists)."""
    before("copy", target)
    with named(target):
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)


def link_tree(source: Path, target: Path) -> None:
    """Fill an empty folder with hard links to the files of another folder; copies if linking is not possible.

    Linked files must never be written to in place: replace them (`write_whole`).
    """
    before("link", target)
    with named(target):
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_link)


def sync_tree(folder: Path) -> None:
    """Sync a folder and everything in it, so that a rename leaves a complete folder even after a power cut."""
    for path in [*folder.rglob("*"), folder]:
        with suppress(OSError):
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except FileExistsError:
        raise  # a copy would write into the existing file
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
