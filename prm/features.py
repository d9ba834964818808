"""Hidden states of a frozen backbone, computed once per text and kept on disk.

A store is a folder of safetensors shards, each written whole or not at all, so a killed run loses at
most one shard's work. It is keyed by everything that the numbers depend on.
"""

import hashlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prm.backbones import cache_dir, reading_digest
from prm.errors import PrmError
from prm.model import RewardModel
from prm.progress import progress
from prm.reader import read_pooled
from prm.readings import Reading, Setting
from prm.tokens import Encoded

_SHARD_TEXTS = 512


class FeatureStore:
    """Pooled hidden states by (text, setting) of one backbone, float32, not standardised.

    Args:
        folder: where the shards lie; made on the first write.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._places: dict[bytes, tuple[Path, int]] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            self._add(shard)

    def _add(self, shard: Path) -> None:
        with safe_open(shard, framework="pt") as file:
            keys = file.get_tensor("keys").numpy()
        self._places |= {key.tobytes(): (shard, i) for i, key in enumerate(keys)}

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def read(self, keys: Sequence[bytes]) -> Tensor:
        """Features [n, d] of the keys, in their order. Raises `KeyError` for one that is missing."""
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for position, key in enumerate(keys):
            shard, row = self._places[key]
            wanted.setdefault(shard, []).append((position, row))
        out: Tensor | None = None
        for shard, places in wanted.items():
            with safe_open(shard, framework="pt") as file:
                features = file.get_tensor("features")
            if out is None:
                out = torch.empty(len(keys), features.shape[1])
            positions, rows = (torch.tensor(column) for column in zip(*places, strict=True))
            out[positions] = features[rows]
        return torch.empty(0, 0) if out is None else out

    def write(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Add features [n, d] under their keys, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = self.folder / f"{uuid.uuid4().hex}.safetensors"
        temporary = shard.with_suffix(".tmp")
        packed = torch.from_numpy(np.stack([np.frombuffer(key, np.uint8) for key in keys]))
        save_file({"keys": packed, "features": features.contiguous()}, temporary)
        os.replace(temporary, shard)
        self._add(shard)


def store_folder(model: RewardModel, dtype: torch.dtype, setting: Setting) -> Path:
    """The folder of a backbone's features: named by its weights, its dtype, its settings and what is read."""
    layers, pooling = setting
    return cache_dir() / "features" / reading_digest(model.fingerprint, model.config, dtype) / f"{layers}-{pooling}"


def own_stores(model: RewardModel) -> list[Path]:
    """The folders of the features that a model with a linear head reads."""
    dtype = next(model.backbone.parameters()).dtype
    return [store_folder(model, dtype, setting) for setting in model.reading]


def text_key(text: Encoded) -> bytes:
    """16 bytes that name the ids and where the response stands; the chat template is part of the ids."""
    content = np.asarray([*text.response, *text.ids], np.int64).tobytes()
    return hashlib.sha256(content).digest()[:16]


@torch.no_grad()
def compute_features(
    model: RewardModel, texts: Sequence[Encoded], settings: Sequence[Setting], max_tokens: int = 4096
) -> dict[Setting, Tensor]:
    """Pooled hidden states [n, d] per setting, on disk afterwards; texts already there are not read again.

    Args:
        model: its backbone must be frozen and at least as deep as the deepest setting.
        texts: sequences without user ids.
        settings: all read in one pass of the backbone.

    Raises `PrmError` for hidden states that are no finite numbers; none of them reach the disk.
    """
    dtype = next(model.backbone.parameters()).dtype
    stores = {s: FeatureStore(store_folder(model, dtype, s)) for s in settings}
    keys = [text_key(text) for text in texts]
    missing = {key: text for key, text in zip(keys, texts, strict=True) if any(key not in s for s in stores.values())}
    todo = list(missing.items())
    bar = progress(total=len(todo), desc="reading texts", unit="text")
    model.backbone.eval()
    # shards of mixed length: progress stays even and a kill costs one shard
    for first in range(0, len(todo), _SHARD_TEXTS):
        part = todo[first : first + _SHARD_TEXTS]
        found = read_pooled(model, [text for _, text in part], settings, max_tokens, bar)
        for setting, pooled in found.items():
            if not pooled.isfinite().all():
                raise PrmError(
                    f"hidden states behind layer {setting[0]} are not finite: 'backbone.dtype' is too narrow"
                )
        for setting, pooled in found.items():
            stores[setting].write([key for key, _ in part], pooled.cpu())
    bar.close()
    return {s: stores[s].read(keys) for s in settings}


def read_features(
    model: RewardModel, texts: Sequence[Encoded], readings: Sequence[Reading], max_tokens: int = 4096
) -> dict[Reading, Tensor]:
    """What heads read, [n, k d] per reading; what `compute_features` keeps on disk is shared by all of them."""
    settings = sorted({setting for reading in readings for setting in reading})
    found = compute_features(model, texts, settings, max_tokens)
    return {r: torch.cat([found[s] for s in r], 1) if len(r) > 1 else found[r[0]] for r in readings}
