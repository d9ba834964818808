"""Hidden states of a frozen backbone, computed once per text and kept on disk.

A store is a folder of safetensors shards, each written whole or not at all, so a killed run loses at
most one shard's work. It is keyed by everything that the numbers depend on.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prm.backbones import cache_dir, decoder_layers, final_norm
from prm.errors import PrmError
from prm.model import RewardModel, pool
from prm.progress import progress
from prm.tokens import Encoded, pad

Setting = tuple[int, str]  # (number of layers read through, pooling)

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
    """The folder of a backbone's features: named by its weights, its dtype and the setting."""
    layers, pooling = setting
    name = json.dumps([model.fingerprint, str(dtype), model.config.model_type])
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return cache_dir() / "features" / digest / f"{layers}-{pooling}"


def own_store(model: RewardModel) -> Path:
    """The folder of the features that a model with a linear head reads."""
    setting = (model.config.get_text_config().num_hidden_layers, model.form.pooling)
    return store_folder(model, next(model.backbone.parameters()).dtype, setting)


def text_key(text: Encoded) -> bytes:
    """16 bytes that name the ids and where the response stands; the chat template is part of the ids."""
    content = np.asarray([*text.response, *text.ids], np.int64).tobytes()
    return hashlib.sha256(content).digest()[:16]


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, each of at most `max_tokens` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        size = max(1, max_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


@torch.no_grad()
def compute_features(
    model: RewardModel, texts: Sequence[Encoded], settings: Sequence[Setting], max_tokens: int = 4096
) -> dict[Setting, Tensor]:
    """Pooled hidden states [n, d] per setting, on disk afterwards; texts already there are not read again.

    Args:
        model: its backbone must be frozen and at least as deep as the deepest setting.
        texts: sequences without user ids.
        settings: all read in one pass of the backbone: a cut at k layers is the final norm on layer k.

    Raises `PrmError` for hidden states that are no finite numbers; none of them reach the disk.
    """
    dtype, device = next(model.backbone.parameters()).dtype, model.standard_mean.device
    stores = {s: FeatureStore(store_folder(model, dtype, s)) for s in settings}
    keys = [text_key(text) for text in texts]
    missing = {key: text for key, text in zip(keys, texts, strict=True) if any(key not in s for s in stores.values())}
    todo = list(missing.items())
    bar = progress(total=len(todo), desc="reading texts", unit="text")
    model.backbone.eval()
    # shards of mixed length: progress stays even and a kill costs one shard
    for first in range(0, len(todo), _SHARD_TEXTS):
        part = todo[first : first + _SHARD_TEXTS]
        dim = len(model.standard_mean)
        found = {s: torch.empty(len(part), dim) for s in settings}
        for chosen in batches([len(text.ids) for _, text in part], max_tokens):
            batch = pad([part[i][1] for i in chosen])
            batch = type(batch)(*(field.to(device) for field in batch))
            with _tapped(model, sorted({layers for layers, _ in settings})) as states:
                model.read(batch)
            for layers, pooling in settings:
                pooled = pool(states[layers], batch, pooling).float().cpu()
                if not pooled.isfinite().all():
                    raise PrmError(
                        f"hidden states behind layer {layers} are not finite: 'backbone.dtype' is too narrow"
                    )
                found[layers, pooling][chosen] = pooled
            bar.update(len(chosen))
        for setting in settings:
            stores[setting].write([key for key, _ in part], found[setting])
    bar.close()
    return {s: stores[s].read(keys) for s in settings}


@contextmanager
def _tapped(model: RewardModel, depths: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect, for each depth k, what the backbone cut to k layers would return."""
    stack, norm = decoder_layers(model.backbone), final_norm(model.backbone)
    states: dict[int, Tensor] = {}

    def tap(depth: int) -> torch.utils.hooks.RemovableHandle:
        def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            states[depth] = norm(output[0] if isinstance(output, tuple) else output)

        return stack[depth - 1].register_forward_hook(keep)

    handles = [tap(depth) for depth in depths]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
