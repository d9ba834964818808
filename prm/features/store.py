"""What a frozen backbone makes of texts, computed once per text and kept on disk: hidden states, log-probabilities.

A store is a folder of shards. A shard is written whole or not at all, its name is the digest of its bytes, and a shard
whose bytes are no longer those is named, dropped and computed again. Several processes may write to one store: equal
shards have one name, and what one of them drops the others compute.
"""

import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor, nn

from prm.data.encoding import Encoded
from prm.errors import PrmError
from prm.io.disk import cache_dir, create, make_folder, remove, rename
from prm.io.progress import Bar, duration, progress
from prm.io.tensors import to_file
from prm.models.backbones import reading_digest

logger = logging.getLogger(__name__)

_FORMAT = 2  # shards of another format are in other folders
_KEY = 16  # bytes
_WORK = 1.4e11  # parameters times tokens that are read between two looks at the clock; a slow CPU's ten seconds
_FASTER = 1000  # an accelerator than a CPU
_MOST_TEXTS = 512  # of a portion
_FLUSH_AFTER = 20.0  # seconds of reading; with the portion then read, half a minute
_WORTH_SAYING = 10.0  # seconds
_LONGEST_WRITE = 3600.0  # seconds: a file without a name that is older was left by a kill

Name = TypeVar("Name")
Read = Callable[[Sequence[Encoded], Bar], Mapping[Name, Tensor]]


def text_key(text: Encoded) -> bytes:
    """16 bytes that name the ids and where the response stands; the chat template is part of the ids."""
    content = np.asarray([*text.response, *text.ids], np.int64).tobytes()
    return hashlib.sha256(content).digest()[:_KEY]


def store_folder(fingerprint: str, config: Any, dtype: torch.dtype, what: str) -> Path:
    """Where `what` is kept of a backbone: the folder is named by its weights, its dtype and its settings."""
    return stores_root() / f"{reading_digest(fingerprint, config, dtype)}-{_FORMAT}" / what


def stores_root() -> Path:
    """The folder of all stores."""
    return cache_dir() / "features"


def own_stores_among(names: Iterable[Any]) -> tuple[list[Path], list[str]]:
    """(folders below our own cache, the other names) of folders that a run says it keeps numbers in.

    What a run folder says may be wrong, of another machine, or meant to do harm: links and `..` are followed first.
    """
    roots = [(cache_dir() / name).resolve() for name in ("features", "keys")]  # keys: of runs with kept texts
    ours: list[Path] = []
    others: list[str] = []
    for name in names:
        try:
            folder = Path(name).resolve()
        except (OSError, TypeError, ValueError, RuntimeError):  # no text, or one that names no path
            others.append(str(name))
            continue
        if any(root in folder.parents for root in roots):
            ours.append(folder)
        else:
            others.append(str(name))
    return ours, others


def clear_store(folder: Path) -> None:
    """Remove all that a store keeps, and its folder where nothing else is in it."""
    for shard in [*folder.glob("*.safetensors"), *folder.glob("*.tmp")]:
        remove(shard)
    for emptied in (folder, folder.parent):
        if emptied.is_dir() and not any(emptied.iterdir()):
            remove(emptied)


class ShardStore:
    """Rows of numbers by text, float32, all of one width.

    Args:
        folder: where the shards lie; made on the first write.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._places: dict[bytes, tuple[Path, int]] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            self._add(shard)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def read(self, keys: Sequence[bytes]) -> tuple[Tensor, Tensor]:
        """(rows [n, d] of the keys in their order, bool [n] which of them were there); [n, 0] where none was.

        A damaged shard is removed, and what it held is not there.
        """
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for position, key in enumerate(keys):
            if key in self._places:
                shard, row = self._places[key]
                wanted.setdefault(shard, []).append((position, row))
        out, there = torch.empty(len(keys), 0), torch.zeros(len(keys), dtype=torch.bool)
        for shard, places in wanted.items():
            values = self._values(shard)
            if values is None:
                continue
            if not there.any():
                out = torch.zeros(len(keys), values.shape[1])
            positions, rows = (torch.tensor(column) for column in zip(*places, strict=True))
            out[positions], there[positions] = values[rows], True
        return out, there

    def write(self, keys: Sequence[bytes], values: Tensor) -> None:
        """Add rows [n, d] under their keys. Raises `PrmError` for what is no finite number, and for a full disk."""
        if not values.isfinite().all():
            raise PrmError(f"{self.folder}: what was read of a text is no finite number, and is not kept")
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
            with safe_open(shard, framework="pt") as file:
                keys = file.get_tensor("keys").numpy()
        except FileNotFoundError:  # another process has dropped it
            return
        except (SafetensorError, OSError) as error:
            self._drop(shard, str(error))
            return
        self._places |= {key.tobytes(): (shard, i) for i, key in enumerate(keys)}

    def _values(self, shard: Path) -> Tensor | None:
        """The rows of a shard, if its bytes are still those that were written."""
        try:
            content = shard.read_bytes()  # what is used is what was looked at, whoever changes the file meanwhile
            if hashlib.sha256(content).hexdigest() != shard.stem:
                raise SafetensorError("its bytes are not those that were written")
            values = load(content)["values"]
            if not values.isfinite().all():
                raise SafetensorError("it holds what is no number")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            self._drop(shard, str(error))
            return None
        return values

    def _drop(self, shard: Path, why: str) -> None:
        logger.warning("%s is damaged (%s): its texts are read again", shard, why)
        remove(shard)
        self._places = {key: place for key, place in self._places.items() if place[0] != shard}

    def _clean_up(self) -> None:
        for left in self.folder.glob("*.tmp"):
            try:
                old = left.stat().st_mtime < time.time() - _LONGEST_WRITE
            except FileNotFoundError:
                continue
            if old:
                remove(left)


def read_kept(
    stores: Mapping[Name, ShardStore],
    texts: Sequence[Encoded],
    read: Read[Name],
    backbone: nn.Module,
    what: str,
) -> dict[Name, Tensor]:
    """What the stores keep of the texts, float32 [n, d] by name, on the CPU; what they lack is read, and kept.

    Whatever was read is on disk within half a minute, or the time of one text. Texts are read in the same portions
    however often the reading is interrupted, so that it ends with the same numbers to the bit. How long it will take is
    said when the first portion is read.

    Args:
        read: reads texts for all stores at once, and moves the bar on by one for each; raises where it cannot.
        backbone: what reads; its size and place say how much it reads at once.
        what: is read, as the progress bar has it.
    """
    keys = [text_key(text) for text in texts]
    once = dict(zip(keys, texts, strict=True))
    # what begins alike is read together
    order = sorted(once, key=lambda key: once[key].ids)
    found, there = {}, torch.ones(len(order), dtype=torch.bool)
    for name, store in stores.items():
        found[name], whole = store.read(order)
        there &= whole
    ordered = [once[key] for key in order]
    portions = _portions(ordered, _tokens_at_once(backbone))
    todo = [left for portion in portions if (left := [i for i in portion if not there[i]])]
    for places, values in _read_in_parts(todo, ordered, read, what):
        for name, rows in values.items():
            stores[name].write([order[i] for i in places], rows)
            if found[name].shape[1] == 0:
                found[name] = torch.zeros(len(order), rows.shape[1])
            found[name][places] = rows
    place = {key: i for i, key in enumerate(order)}
    index = torch.tensor([place[key] for key in keys], dtype=torch.long)
    return {name: rows[index] for name, rows in found.items()}


def _read_in_parts(
    portions: Sequence[Sequence[int]], texts: Sequence[Encoded], read: Read[Name], what: str
) -> Iterator[tuple[list[int], dict[Name, Tensor]]]:
    """(places of texts, what was read of them): some portions at a time, as often as they are to be kept."""
    places: list[int] = []
    values: dict[Name, list[Tensor]] = {}
    total = sum(map(len, portions))
    kept = started = time.monotonic()
    with progress(total=total, desc=what, unit="text") as bar:
        for number, portion in enumerate(portions):
            for name, rows in read([texts[i] for i in portion], bar).items():
                values.setdefault(name, []).append(rows.float().cpu())
            places += portion
            now = time.monotonic()
            if number == 0:
                _say_how_long(now - started, texts, portions, what)
            if now - kept > _FLUSH_AFTER or len(places) >= _MOST_TEXTS or number == len(portions) - 1:
                yield places, {name: torch.cat(parts) for name, parts in values.items()}
                places, values, kept = [], {}, time.monotonic()


def _say_how_long(seconds: float, texts: Sequence[Encoded], portions: Sequence[Sequence[int]], what: str) -> None:
    tokens = [sum(len(texts[i].ids) for i in portion) for portion in portions]
    left = seconds * sum(tokens[1:]) / max(1, tokens[0])
    if left > _WORTH_SAYING:
        logger.info("%s: about %s for %d texts", what, duration(left), sum(map(len, portions[1:])))


def _portions(texts: Collection[Encoded], tokens: int) -> list[list[int]]:
    """Places of texts in their order, in portions of about so many tokens; one text may have more."""
    found: list[list[int]] = []
    size = 0
    for i, text in enumerate(texts):
        if not found or size + len(text.ids) > tokens or len(found[-1]) == _MOST_TEXTS:
            found.append([])
            size = 0
        found[-1].append(i)
        size += len(text.ids)
    return found


def _tokens_at_once(backbone: nn.Module) -> int:
    """Tokens of a portion. They follow from the backbone's size and place, never from the time that reading takes."""
    work = _WORK * (1 if next(backbone.parameters()).device.type == "cpu" else _FASTER)
    return int(work / sum(p.numel() for p in backbone.parameters()))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
