"""Keys and values of texts on disk, read once by a frozen backbone and mapped into memory from then on.

A store is a folder of safetensors shards, each written whole or not at all, so a killed run loses at most one shard's
work. It is keyed by everything that the numbers depend on: the backbone's weights, dtype, depth and settings; a text by
its ids, which chat template and truncation have made.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from prm.backbones import cache_dir, processes, reading_digest
from prm.behind import KeptBatch
from prm.errors import PrmError
from prm.keys import Ids, KeyTable, kept_batch, portions, read_keys
from prm.model import RewardModel
from prm.plan import make_plan
from prm.progress import progress
from prm.tokens import Batch, Encoded, pad

logger = logging.getLogger(__name__)

_SHARD_TOKENS = 8192
_BYTES_A_TEXT, _BYTES_A_SHARD = 24, 1024  # names and ends; the header of the file
_GB = 1e9
_LONGEST_WRITE = 3600.0  # seconds: what was begun before then was begun by a run that was killed


class KeyStore:
    """Keys and values of texts of one backbone.

    Shards that are damaged are removed: their texts are read again.

    Args:
        folder: where the shards lie; made on the first write.
        look_in: folders of the same backbone whose texts are there from the start; `folder` where not given.
    """

    def __init__(self, folder: Path, look_in: Iterable[Path] | None = None):
        self.folder = folder
        self._places: dict[bytes, tuple[KeyTable, int, Path]] = {}
        places = dict.fromkeys([folder] if look_in is None else look_in)
        for shard in [shard for place in places for shard in sorted(place.glob("*.safetensors"))]:
            try:
                self._add(shard, shard)
            except FileNotFoundError:  # another run made room
                continue
            except SafetensorError as error:
                logger.warning("%s is damaged (%s): its texts are read again", shard, error)
                shard.unlink(missing_ok=True)

    def _add(self, file: Path, shard: Path) -> None:
        with safe_open(file, framework="pt") as content:  # tensors are mapped, not read
            texts = content.get_tensor("texts").numpy()
            table = KeyTable(*(content.get_tensor(name) for name in KeyTable._fields))
        self._places |= {key.tobytes(): (table, i, shard) for i, key in enumerate(texts)}

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def at(self, key: bytes) -> tuple[KeyTable, int]:
        """(table, place in it) of a text. Raises `KeyError` for one that is missing."""
        table, place, _ = self._places[key]
        return table, place

    def shards_of(self, keys: Iterable[bytes]) -> set[Path]:
        """The files that hold these texts, as far as they are there."""
        return {self._places[key][2] for key in keys if key in self._places}

    def size_of(self, keys: Iterable[bytes]) -> int:
        """Bytes of those files, other texts in them included."""
        return sum(stat.st_size for shard in self.shards_of(keys) if (stat := _stat(shard)))

    def write(self, keys: Sequence[bytes], table: KeyTable) -> None:
        """Add the texts of a table under their keys, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        temporary = shard.with_suffix(".tmp")
        names = torch.from_numpy(np.stack([np.frombuffer(key, np.uint8) for key in keys]))
        parts = {name: part.cpu().contiguous() for name, part in table._asdict().items()}
        save_file({"texts": names, **parts}, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or, after a power cut, the name may be there without the numbers
        self._add(temporary, shard)  # before another run can make room of it
        os.replace(temporary, shard)


class KeptTexts:
    """Texts whose keys and values are at hand, and users behind them as batches."""

    def __init__(self, model: RewardModel, store: KeyStore):
        self._store, self._tokens = store, model.user_tokens

    def batch(self, sequences: Sequence[Encoded]) -> KeptBatch:
        """The sequences, each a text and one user behind it, in the CPU's memory, as loaders pin and move it.

        Raises `KeyError` for a text that was not kept.
        """
        texts = [self._store.at(ids_key(s.ids[: -self._tokens])) for s in sequences]
        users = torch.tensor([[s.ids[-self._tokens :]] for s in sequences])
        return kept_batch(texts, users, torch.device("cpu"))


def store_folder(model: RewardModel) -> Path:
    """The folder of a backbone's keys and values: named by its weights, dtype, depth and settings."""
    dtype = next(model.backbone.parameters()).dtype
    return _all_stores() / reading_digest(model.fingerprint, model.config, dtype, model.layers)


def stores_of(model: RewardModel) -> list[Path]:
    """Every folder that may hold keys of the backbone: its own, and what killed runs left beside it."""
    own = store_folder(model)
    return [own, *own.parent.glob(f"{own.name}-*")]


def _all_stores() -> Path:
    return cache_dir() / "keys"


def ids_key(ids: Ids) -> bytes:
    """16 bytes that name a text."""
    return hashlib.sha256(np.asarray(ids, np.int64).tobytes()).digest()[:16]


def keep_texts(
    model: RewardModel, sequences: Sequence[Encoded], most_gb: float, folder: Path | None = None
) -> KeptTexts:
    """Read the texts that the users of the sequences stand behind, as far as they are not there; all are kept then.

    Among several processes one reads, the others wait; so do other runs that have something to read: together they keep
    to `most_gb`, and find what the first one read.

    Args:
        most_gb: that all stores in the cache folder may take together; shards of other texts go first, oldest first.
        folder: of what is read now, among the other stores; that of the backbone where not given.

    Raises `PrmError` where the texts would take more, or more than the disk has, before anything is read; and for
    keys that are no finite numbers, which do not reach the disk.
    """
    folder = folder or store_folder(model)
    with processes().main_process_first(), ExitStack() as stack:
        store = KeyStore(folder, [store_folder(model), folder])
        texts = {ids_key(ids): ids for s in sequences if (ids := s.ids[: -model.user_tokens])}
        if any(key not in store for key in texts):
            stack.enter_context(_alone())
            store = KeyStore(folder, [store_folder(model), folder])
        missing = _missing(model, store, texts)
        if missing.n_bytes + store.size_of(texts) > most_gb * _GB:  # shards may hold much besides: without them, then
            mixed, store = store.shards_of(texts), KeyStore(folder, ())
            missing = _missing(model, store, texts)
            for shard in mixed if missing.n_bytes <= most_gb * _GB else ():
                shard.unlink(missing_ok=True)
        _make_room(store, list(texts), missing.n_bytes, most_gb)
        bar = progress(total=sum(map(len, missing.parts)), desc="keeping texts", unit="text")
        for keys in missing.parts:
            table = read_keys(model.backbone, [texts[key] for key in keys])
            if not (table.keys.isfinite().all() and table.values.isfinite().all()):
                raise PrmError("keys or values of a text are not finite: 'backbone.dtype' is too narrow")
            store.write(keys, table)
            bar.update(len(keys))
        bar.close()
    return KeptTexts(model, store)


@contextmanager
def _alone() -> Iterator[None]:
    """No other run makes room or writes meanwhile; the system lets go of it where this one is killed."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache_dir() / "keys.lock")
    try:
        lock.acquire(timeout=0.0)
    except Timeout:
        logger.info("waiting for another run, which reads texts into %s", _all_stores())
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Missing(NamedTuple):
    """Texts to be read, a shard each part, and what they will take on disk at most."""

    parts: list[list[bytes]]
    n_bytes: int


def _missing(model: RewardModel, store: KeyStore, texts: Mapping[bytes, Ids]) -> _Missing:
    keys = [key for key in texts if key not in store]
    parts = [[keys[i] for i in places] for places, _ in portions([texts[key] for key in keys], _SHARD_TOKENS)]
    if not parts:
        return _Missing([], 0)
    rows = sum(len(make_plan([list(texts[key]) for key in part]).ids) for part in parts)
    beside = sum(4 * len(texts[key]) + _BYTES_A_TEXT for key in keys) + _BYTES_A_SHARD * len(parts)
    return _Missing(parts, rows * _bytes_a_token(model) + beside)


@contextmanager
def batches_of(
    model: RewardModel, sequences: Sequence[Encoded], most_gb: float, cache: bool
) -> Iterator[Callable[[Sequence[Encoded]], Batch | KeptBatch]]:
    """What makes batches of these sequences, as the model reads them: padded, or users behind kept texts.

    Args:
        cache: texts stay kept on disk after the block.
    """
    if not model.reads_kept:
        yield pad
    elif cache:
        yield keep_texts(model, sequences, most_gb).batch
    else:
        own = store_folder(model)
        own.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=own.parent, prefix=f"{own.name}-") as folder:
            yield keep_texts(model, sequences, most_gb, Path(folder)).batch


def _bytes_a_token(model: RewardModel) -> int:
    """What a token takes on disk, measured on one."""
    table = read_keys(model.backbone, [[0]])
    return table.keys.nbytes + table.values.nbytes


def _make_room(store: KeyStore, keys: Sequence[bytes], new: int, most_gb: float) -> None:
    needed = store.shards_of(keys)
    shards = {path: stat for path in _all_stores().glob("*/*.safetensors") if (stat := _stat(path))}
    kept = store.size_of(keys)
    what = f"keys and values of the texts take {(kept + new) / _GB:.3g} GB"
    mend = "give fewer texts, a lower 'backbone.layers' or 'backbone.max_length'"
    if kept + new > most_gb * _GB:
        raise PrmError(f"{what}, more than the {most_gb:g} GB of 'optim.kept_gb': raise it, or {mend}")
    for path in _all_stores().glob("*/*.tmp"):
        if (stat := _stat(path)) and stat.st_mtime < time.time() - _LONGEST_WRITE:
            path.unlink(missing_ok=True)
    over = sum(stat.st_size for stat in shards.values()) + new - most_gb * _GB
    for path in sorted(shards.keys() - needed, key=lambda path: shards[path].st_mtime):
        if over <= 0:
            break
        path.unlink(missing_ok=True)  # runs that have mapped it keep it
        over -= shards[path].st_size
    if not new:
        return
    free = shutil.disk_usage(next(p for p in [store.folder, *store.folder.parents] if p.exists())).free
    if new > free:
        raise PrmError(f"{what}, but {free / _GB:.3g} GB are free in {cache_dir()}: set $PRM_CACHE, or {mend}")
    logger.info("%s, %.3g GB of them new, in %s", what, new / _GB, store.folder)


def _stat(path: Path) -> os.stat_result | None:
    """`None` for a file that another run has removed meanwhile."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
