"""Keys and values of texts on disk, read once by a frozen backbone and mapped into memory from then on.

A store is a folder of safetensors shards, each written whole or not at all, so a killed run loses at most one shard's
work. It is keyed by everything that the numbers depend on: the backbone's weights, dtype and depth; a text by its ids,
which chat template and truncation have made.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from prm.backbones import cache_dir, processes
from prm.behind import KeptBatch
from prm.errors import PrmError
from prm.keys import Ids, KeyTable, kept_batch, portions, read_keys
from prm.model import RewardModel
from prm.progress import progress
from prm.tokens import Batch, Encoded, pad

logger = logging.getLogger(__name__)

_SHARD_TOKENS = 8192
_GB = 1e9


class KeyStore:
    """Keys and values of texts of one backbone.

    Args:
        folder: where the shards lie; made on the first write.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._places: dict[bytes, tuple[KeyTable, int, Path]] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            self._add(shard)

    def _add(self, shard: Path) -> None:
        with safe_open(shard, framework="pt") as file:  # tensors are mapped, not read
            texts = file.get_tensor("texts").numpy()
            table = KeyTable(*(file.get_tensor(name) for name in KeyTable._fields))
        self._places |= {key.tobytes(): (table, i, shard) for i, key in enumerate(texts)}

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def at(self, key: bytes) -> tuple[KeyTable, int]:
        """(table, place in it) of a text. Raises `KeyError` for one that is missing."""
        table, place, _ = self._places[key]
        return table, place

    def shards_of(self, keys: Sequence[bytes]) -> set[Path]:
        """The files that hold these texts, as far as they are there."""
        return {self._places[key][2] for key in keys if key in self._places}

    def write(self, keys: Sequence[bytes], table: KeyTable) -> None:
        """Add the texts of a table under their keys, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        temporary = shard.with_suffix(".tmp")
        names = torch.from_numpy(np.stack([np.frombuffer(key, np.uint8) for key in keys]))
        parts = {name: part.cpu().contiguous() for name, part in table._asdict().items()}
        save_file({"texts": names, **parts}, temporary)
        os.replace(temporary, shard)
        self._add(shard)


class KeptTexts:
    """Texts whose keys and values are at hand, and users behind them as batches."""

    def __init__(self, model: RewardModel, store: KeyStore):
        self._store, self._tokens, self._device = store, model.user_tokens, model.standard_mean.device

    def batch(self, sequences: Sequence[Encoded]) -> KeptBatch:
        """The sequences, each a text and one user behind it. Raises `KeyError` for a text that was not kept."""
        texts = [self._store.at(ids_key(s.ids[: -self._tokens])) for s in sequences]
        users = torch.tensor([[s.ids[-self._tokens :]] for s in sequences])
        return kept_batch(texts, users, self._device)


def store_folder(model: RewardModel) -> Path:
    """The folder of a backbone's keys and values: named by its weights, dtype and depth."""
    dtype = next(model.backbone.parameters()).dtype
    name = json.dumps([model.fingerprint, str(dtype), model.config.model_type, model.layers])
    return _all_stores() / hashlib.sha256(name.encode()).hexdigest()[:16]


def _all_stores() -> Path:
    return cache_dir() / "keys"


def ids_key(ids: Ids) -> bytes:
    """16 bytes that name a text."""
    return hashlib.sha256(np.asarray(ids, np.int64).tobytes()).digest()[:16]


def keep_texts(
    model: RewardModel, sequences: Sequence[Encoded], most_gb: float, folder: Path | None = None
) -> KeptTexts:
    """Read the texts that the users of the sequences stand behind, as far as they are not there; all are kept then.

    Among several processes one reads, the others wait.

    Args:
        most_gb: that all stores in the cache folder may take together; shards of other texts go first, oldest first.
        folder: of the store, among the others; that of the backbone where not given.

    Raises `PrmError` where the texts would take more, or more than the disk has, before anything is read; and for
    keys that are no finite numbers, which do not reach the disk.
    """
    folder = folder or store_folder(model)
    with processes().main_process_first():
        store = KeyStore(folder)
        texts = {ids_key(ids): ids for s in sequences if (ids := s.ids[: -model.user_tokens])}
        missing = [key for key in texts if key not in store]
        parts = portions([texts[key] for key in missing], _SHARD_TOKENS)
        _make_room(store, list(texts), sum(n for _, n in parts) * _bytes_a_token(model) if parts else 0, most_gb)
        bar = progress(total=len(missing), desc="keeping texts", unit="text")
        for places, _ in parts:
            keys = [missing[i] for i in places]
            table = read_keys(model.backbone, [texts[key] for key in keys])
            if not (table.keys.isfinite().all() and table.values.isfinite().all()):
                raise PrmError("keys or values of a text are not finite: 'backbone.dtype' is too narrow")
            store.write(keys, table)
            bar.update(len(keys))
        bar.close()
    return KeptTexts(model, store)


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
        _all_stores().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_all_stores()) as folder:
            yield keep_texts(model, sequences, most_gb, Path(folder)).batch


def _bytes_a_token(model: RewardModel) -> int:
    """What a token takes on disk, measured on one."""
    table = read_keys(model.backbone, [[0]])
    return table.keys.nbytes + table.values.nbytes


def _make_room(store: KeyStore, keys: Sequence[bytes], new: int, most_gb: float) -> None:
    needed = store.shards_of(keys)
    shards = {path: path.stat() for path in _all_stores().glob("*/*.safetensors")}
    kept = sum(shards[path].st_size for path in needed)
    what = f"keys and values of the texts take {(kept + new) / _GB:.3g} GB"
    mend = "give fewer texts, a lower 'backbone.layers' or 'backbone.max_length'"
    if kept + new > most_gb * _GB:
        raise PrmError(f"{what}, more than the {most_gb:g} GB of 'optim.kept_gb': raise it, or {mend}")
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
