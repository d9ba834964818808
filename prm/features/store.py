"""A disk cache of what a frozen backbone computes per text: hidden states, log-probabilities.

A store is a folder of shards. A shard is written atomically and named by the digest of its bytes; a shard with another
digest is reported, dropped and computed again. Several processes may write to one store: equal shards have the same
name, and what one process drops, the others compute again.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor, nn
from transformers import PretrainedConfig

from prm.data.encoding import Encoded
from prm.errors import PrmError
from prm.features.cache_folder import stores_root
from prm.io.disk import create, make_folder, remove, rename
from prm.io.progress import Bar, duration, progress
from prm.io.tensors import to_file
from prm.models.backbones import reading_digest

logger = logging.getLogger(__name__)

_FORMAT = 2  # part of the folder's name
_KEY_BYTES = 16
_WORK_PER_PORTION = 1.4e11  # parameters times tokens: about ten seconds of a slow CPU
_ACCELERATOR_SPEEDUP = 1000  # compared to a CPU
_MAX_TEXTS = 512  # per portion
_FLUSH_AFTER = 20.0  # seconds; at most half a minute with the portion then running
_MIN_LOGGED_SECONDS = 10.0  # seconds
_STALE_AFTER = 3600.0  # seconds: an older temporary file was left by a killed process

Name = TypeVar("Name")
Portion = Sequence[Encoded]
Read = Callable[[Portion, Bar], Mapping[Name, Tensor]]


def text_key(text: Encoded) -> bytes:
    """16-byte digest of the ids, chat template included, and of the response's position."""
    content = np.asarray([*text.response, *text.ids], np.int64).tobytes()
    return hashlib.sha256(content).digest()[:_KEY_BYTES]


def store_folder(fingerprint: str, config: PretrainedConfig, dtype: torch.dtype, what: str) -> Path:
    """The folder for `what` of a backbone, named by the digest of its weights, dtype and settings."""
    return stores_root() / f"{reading_digest(fingerprint, config, dtype)}-{_FORMAT}" / what


class ShardStore:
    """Rows of equal width by text key, float32.

    Args:
        folder: of the shards; created on the first write.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._locations: dict[bytes, tuple[Path, int]] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            self._add(shard)

    def __contains__(self, key: bytes) -> bool:
        return key in self._locations

    def read(self, keys: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        """(rows [n, d] of the keys, bool [n] which of them were found); rows are [n, 0] if none was.

        A damaged shard is removed, and its keys are not found.
        """
        by_shard: dict[Path, list[tuple[int, int]]] = {}
        for position, key in enumerate(keys):
            if key in self._locations:
                shard, row = self._locations[key]
                by_shard.setdefault(shard, []).append((position, row))
        out, found = torch.empty(len(keys), 0), torch.zeros(len(keys), dtype=torch.bool)
        for shard, entries in by_shard.items():
            values = self._values(shard)
            if values is None:
                continue
            if not found.any():
                out = torch.zeros(len(keys), values.shape[1])
            positions, rows = (torch.tensor(column) for column in zip(*entries, strict=True))
            out[positions], found[positions] = values[rows], True
        return out, found

    def write(self, keys: Sequence[bytes], values: Tensor) -> None:
        """Add rows [n, d] under their keys. Raises `PrmError` for values that are not finite, and for a full disk."""
        if not values.isfinite().all():
            raise PrmError(f"{self.folder}: values of a text are not finite, and are not cached")
        make_folder(self.folder)
        self._clean_up()
        names = torch.from_numpy(np.stack([np.frombuffer(key, np.uint8) for key in keys]))
        temporary = self.folder / f"{uuid.uuid4().hex}.tmp"
        create(temporary, partial(to_file, {"keys": names, "values": values.float()}, None))
        shard = self.folder / f"{_digest(temporary)}.safetensors"
        rename(temporary, shard)
        self._add(shard)

    def _add(self, shard: Path) -> None:
        try:
            with safe_open(shard, framework="numpy") as file:  # one mapping: torch would open the file again
                keys = file.get_tensor("keys")
        except FileNotFoundError:  # another process has dropped it
            return
        except (SafetensorError, OSError) as error:
            self._drop(shard, str(error))
            return
        self._locations |= {key.tobytes(): (shard, i) for i, key in enumerate(keys)}

    def _values(self, shard: Path) -> Tensor | None:
        """The rows of a shard, or `None` if it is missing or damaged."""
        try:
            content = shard.read_bytes()  # read once, so that the bytes that are used are those that were checked
            if hashlib.sha256(content).hexdigest() != shard.stem:
                raise SafetensorError("its bytes are not those that were written")
            values = load(content)["values"]
            if not values.isfinite().all():
                raise SafetensorError("it has values that are not finite")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            self._drop(shard, str(error))
            return None
        return values

    def _drop(self, shard: Path, why: str) -> None:
        logger.warning("%s is damaged (%s): its texts are computed again", shard, why)
        remove(shard)
        self._locations = {key: location for key, location in self._locations.items() if location[0] != shard}

    def _clean_up(self) -> None:
        for path in self.folder.glob("*.tmp"):
            try:
                is_stale = path.stat().st_mtime < time.time() - _STALE_AFTER
            except FileNotFoundError:
                continue
            if is_stale:
                remove(path)


class PortionReader(Protocol[Name]):
    """Computes the values of texts, a portion at a time, in this process or in others.

    `what` is the label of the progress bar.
    """

    what: str

    def tokens_at_once(self) -> int:
        """Maximum number of tokens in a portion; the same on every call, since it decides which texts go together."""
        ...

    def read(self, portions: Sequence[Portion], bar: Bar) -> Iterator[tuple[int, Mapping[Name, Tensor]]]:
        """Yield (index of a portion, its values for all stores at once) in any order; advances the bar by each text."""
        ...


@dataclass
class ReadHere(Generic[Name]):
    """Reads portions in this process. The time that all of them need is logged after the first one.

    Args:
        portion: computes a portion for all stores at once, and advances the bar by one per text; may raise.
        backbone: its size and device set the size of portions.
    """

    portion: Read[Name]
    backbone: nn.Module
    what: str

    def tokens_at_once(self) -> int:
        """As of `PortionReader`."""
        size = sum(p.numel() for p in self.backbone.parameters())
        return tokens_at_once(size, next(self.backbone.parameters()).device.type == "cpu")

    def read(self, portions: Sequence[Portion], bar: Bar) -> Iterator[tuple[int, Mapping[Name, Tensor]]]:
        """As of `PortionReader`, in order."""
        started = time.monotonic()
        for number, portion in enumerate(portions):
            values = self.portion(portion, bar)
            if number == 0:
                _log_estimate(time.monotonic() - started, portions, self.what)
            yield number, values


def tokens_at_once(parameters: int, on_cpu: bool) -> int:
    """Tokens per portion, from the backbone's size and device alone: measured times would make portions vary."""
    return int(_WORK_PER_PORTION * (1 if on_cpu else _ACCELERATOR_SPEEDUP) / parameters)


def read_or_compute(
    stores: Mapping[Name, ShardStore], texts: Sequence[Encoded], reader: PortionReader[Name]
) -> dict[Name, Tensor]:
    """The stores' values of the texts, float32 [n, d] by name, on the CPU; missing values are computed and cached.

    Values are on disk within half a minute, or the time of one text. Texts are computed in fixed portions, so that an
    interrupted run ends with the same values to the bit. This process alone writes.
    """
    keys = [text_key(text) for text in texts]
    unique = dict(zip(keys, texts, strict=True))
    # texts with a common prefix go together
    order = sorted(unique, key=lambda key: unique[key].ids)
    values_by_store, complete = {}, torch.ones(len(order), dtype=torch.bool)
    for name, store in stores.items():
        values_by_store[name], found_here = store.read(order)
        complete &= found_here
    ordered = [unique[key] for key in order]
    for indices, values in _read_missing(ordered, complete, reader):
        for name, rows in values.items():
            stores[name].write([order[i] for i in indices], rows)
            if values_by_store[name].shape[1] == 0:
                values_by_store[name] = torch.zeros(len(order), rows.shape[1])
            values_by_store[name][indices] = rows
    position = {key: i for i, key in enumerate(order)}
    index = torch.tensor([position[key] for key in keys], dtype=torch.long)
    return {name: rows[index] for name, rows in values_by_store.items()}


def _read_missing(
    texts: Sequence[Encoded], complete: Tensor, reader: PortionReader[Name]
) -> Iterator[tuple[list[int], dict[Name, Tensor]]]:
    """Yield (indices of texts, their values) whenever values should be written to disk."""
    if complete.all():
        return
    portions = _portions(texts, reader.tokens_at_once())
    todo = [missing for portion in portions if (missing := [i for i in portion if not complete[i]])]
    indices: list[int] = []
    values: dict[Name, list[Tensor]] = {}
    done, last_flush = 0, time.monotonic()
    with progress(total=sum(map(len, todo)), desc=reader.what, unit="text") as bar:
        results = reader.read([[texts[i] for i in portion] for portion in todo], bar)
        for done, (number, found) in enumerate(results, start=1):
            for name, rows in found.items():
                values.setdefault(name, []).append(rows.float().cpu())
            indices += todo[number]
            now = time.monotonic()
            if now - last_flush > _FLUSH_AFTER or len(indices) >= _MAX_TEXTS or done == len(todo):
                yield indices, {name: torch.cat(parts) for name, parts in values.items()}
                indices, values, last_flush = [], {}, time.monotonic()
    if done != len(todo):
        raise ValueError(f"{len(todo) - done} of {len(todo)} portions of texts were not read")


def _log_estimate(seconds: float, portions: Sequence[Portion], what: str) -> None:
    tokens = [sum(len(text.ids) for text in portion) for portion in portions]
    remaining = seconds * sum(tokens[1:]) / max(1, tokens[0])
    if remaining > _MIN_LOGGED_SECONDS:
        logger.info("%s: about %s for %d texts", what, duration(remaining), sum(map(len, portions[1:])))


def _portions(texts: Collection[Encoded], tokens: int) -> list[list[int]]:
    """Indices of the texts, in portions of at most `tokens` tokens; a longer text is a portion of its own."""
    portions: list[list[int]] = []
    size = 0
    for i, text in enumerate(texts):
        if not portions or size + len(text.ids) > tokens or len(portions[-1]) == _MAX_TEXTS:
            portions.append([])
            size = 0
        portions[-1].append(i)
        size += len(text.ids)
    return portions


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
