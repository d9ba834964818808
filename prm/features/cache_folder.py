"""The cache folder: what is in it, and its removal. Imports no torch."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prm.io.disk import beside, cache_dir, remove
from prm.io.locks import BusyError, locked
from prm.models.backbone_paths import EMBEDDED

# kinds of entries, and what they are
KINDS = {
    "backbones": "the embedded model, converted",
    "hidden_states": "hidden states of frozen backbones",
    "reference_logps": "log-probabilities of reference policies",
    "scratch": "copies of data sets that killed commands left",
}
LOGPS = "logps"  # name of a store of log-probabilities
_STORE_ROOTS = ("features", "keys")  # keys: for runs with cached texts
_BACKBONE = re.compile(r"[0-9a-f]{16}-\d+")
_SHARD = re.compile(r"[0-9a-f]{64}\.safetensors|[0-9a-f]{32}\.tmp")
_SCRATCH = re.compile(r"[0-9a-f]{32}")
_LOCK = re.compile(r"\..*\.lock")


@dataclass(frozen=True)
class Entry:
    """One thing in the cache folder that this library wrote.

    Args:
        paths: the files and folders that it consists of.
        bytes: their size.
        last_used: when a file of it was last read or written, in seconds since 1970.
    """

    kind: str
    folder: Path
    paths: tuple[Path, ...]
    bytes: int
    last_used: float


def stores_root() -> Path:
    """The folder of all stores."""
    return cache_dir() / "features"


def own_stores_among(names: Iterable[object]) -> tuple[list[Path], list[str]]:
    """Split the cache folders that a run names into (folders inside our cache, other names).

    A run folder may name wrong, remote or malicious paths: links and `..` are resolved first.
    """
    roots = [(cache_dir() / name).resolve() for name in _STORE_ROOTS]
    own: list[Path] = []
    others: list[str] = []
    for name in names:
        try:
            folder = Path(name).resolve() if isinstance(name, str) else None
        except (OSError, ValueError, RuntimeError):  # no valid path
            folder = None
        if folder is not None and any(root in folder.parents for root in roots):
            own.append(folder)
        else:
            others.append(str(name))
    return own, others


def clear_store(folder: Path) -> None:
    """Remove a store's shards, and its folder and parent folder if they are then empty."""
    for shard in [*folder.glob("*.safetensors"), *folder.glob("*.tmp")]:
        remove(shard)
    for parent in (folder, folder.parent):
        if parent.is_dir() and not any(parent.iterdir()):
            remove(parent)


def entries() -> list[Entry]:
    """All that this library wrote to the cache folder, by kind; without links and names that it does not give."""
    return [*_backbones(), *sorted(_stores(), key=lambda entry: (entry.kind, entry.folder)), *_scratch()]


def _backbones() -> Iterator[Entry]:
    folder = cache_dir() / "backbones" / EMBEDDED
    versions = (folder, *(beside(folder, end) for end in (".new", ".old")))  # the latter are left by killed commands
    if found := [path for path in _folders(folder.parent) if path in versions]:
        yield _entry("backbones", folder, found)


def _stores() -> Iterator[Entry]:
    for root in _STORE_ROOTS:
        for backbone in _folders(cache_dir() / root):
            for folder in _folders(backbone) if _BACKBONE.fullmatch(backbone.name) else ():
                if shards := [path for path in sorted(folder.iterdir()) if _is_shard(path)]:
                    yield _entry("reference_logps" if folder.name == LOGPS else "hidden_states", folder, shards)


def _scratch() -> Iterator[Entry]:
    for folder in _folders(cache_dir() / "scratch"):
        if _SCRATCH.fullmatch(folder.name):
            yield _entry("scratch", folder, [folder])


def foreign(known: Iterable[Entry]) -> list[Path]:
    """What else the cache folder holds: files and folders that this library did not write."""
    ours = {path for entry in known for path in entry.paths}
    parents = {parent for path in ours for parent in path.parents}

    def others(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path in parents and not path.is_symlink():
                yield from others(path)
            elif path not in ours and not _LOCK.fullmatch(path.name) and not _is_empty_folder(path):
                yield path

    return list(others(cache_dir()))


def clear(chosen: Collection[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Remove entries, and the folders that are empty then. Returns (removed, in use by another command)."""
    removed, busy = [], []
    for entry in chosen:
        try:
            with locked(entry.folder):
                for path in entry.paths:
                    remove(path)
        except BusyError:
            busy.append(entry)
            continue
        removed.append(entry)
        for parent in (entry.folder, *entry.folder.parents):
            if parent == cache_dir():
                break
            if _is_empty_folder(parent):
                remove(parent)
    return removed, busy


def _entry(kind: str, folder: Path, paths: Sequence[Path]) -> Entry:
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    stats = [os.lstat(file) for file in files]
    last = max((max(stat.st_atime, stat.st_mtime) for stat in stats), default=paths[0].stat().st_mtime)
    return Entry(kind, folder, tuple(paths), sum(stat.st_size for stat in stats), last)


def _folders(folder: Path) -> list[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink()]


def _is_shard(path: Path) -> bool:
    return _SHARD.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())
