"""Hidden states of a frozen backbone, computed once per text and cached on disk (`prm.features.store`)."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from prm.config import FeatureSpec, LayerPooling, RewardModelConfig, UserConfig
from prm.data.encoding import Encoded
from prm.errors import PrmError
from prm.features.extract import read_pooled
from prm.features.store import (
    Portion,
    PortionReader,
    ReadHere,
    ShardStore,
    read_or_compute,
    store_folder,
    tokens_at_once,
)
from prm.io.progress import Bar, progress
from prm.models.backbone_paths import from_anywhere
from prm.models.reward_model import RewardModel, build_reward_model
from prm.models.shared_backbone import BackboneLoader

_WHAT = "computing hidden states"


def feature_folder(model: RewardModel, setting: LayerPooling) -> Path:
    """The cache folder of a setting's pooled hidden states, float32 and not standardised."""
    layers, pooling = setting
    dtype = next(model.backbone.parameters()).dtype
    return store_folder(model.fingerprint, model.config, dtype, f"{layers}-{pooling}")


def own_stores(model: RewardModel) -> list[Path]:
    """The cache folders of the features of a model with a linear head."""
    return [feature_folder(model, setting) for setting in model.feature_spec]


class Reading(NamedTuple):
    """What other processes must know to compute the same hidden states.

    Args:
        backbone: its name, with which each of them loads it.
        digest: of its weights and settings; a process that loads others refuses to read.
        max_tokens: per pass of the backbone.
    """

    backbone: str
    layers: int
    dtype: torch.dtype
    digest: str
    settings: tuple[LayerPooling, ...]
    max_tokens: int


class Workers(Protocol):
    """Processes that read texts for this one, such as those of `prm.scale.ray_features`."""

    def on_cpu(self) -> bool:
        """Whether they compute on CPUs."""
        ...

    def read(
        self, reading: Reading, portions: Sequence[Portion]
    ) -> Iterator[tuple[int, Mapping[LayerPooling, Tensor]]]:
        """Yield (index of a portion, its hidden states) in any order. Raises `PrmError` for what they cannot read."""
        ...


class Elsewhere(NamedTuple):
    """Where hidden states are computed, if not in this process: by workers, who load the backbone by its name."""

    workers: Workers
    backbone: str


@dataclass
class _ReadElsewhere:
    """`PortionReader` by workers."""

    workers: Workers
    reading: Reading
    parameters: int
    what: str = _WHAT

    def tokens_at_once(self) -> int:
        return tokens_at_once(self.parameters, self.workers.on_cpu())

    def read(self, portions: Sequence[Portion], bar: Bar) -> Iterator[tuple[int, Mapping[LayerPooling, Tensor]]]:
        for number, states in self.workers.read(self.reading, portions):
            bar.update(len(portions[number]))
            yield number, states


def compute_features(
    model: RewardModel,
    texts: Sequence[Encoded],
    settings: Sequence[LayerPooling],
    max_tokens: int = 4096,
    elsewhere: Elsewhere | None = None,
) -> dict[LayerPooling, Tensor]:
    """Pooled hidden states [n, d] per setting; computes those that are not cached, and caches them.

    Args:
        model: its backbone must be frozen and at least as deep as the deepest setting.
        texts: sequences without user ids.
        settings: all computed in one pass of the backbone.
        elsewhere: who computes them, if not this process.

    Raises `PrmError` for hidden states that are not finite, and does not cache them.
    """
    stores = {setting: ShardStore(feature_folder(model, setting)) for setting in settings}
    reader: PortionReader[LayerPooling] = ReadHere(_reader_of(model, settings, max_tokens), model.backbone, _WHAT)
    if elsewhere is not None:
        reading = Reading(
            from_anywhere(elsewhere.backbone),
            model.layers,
            next(model.backbone.parameters()).dtype,
            _digest(model),
            tuple(settings),
            max_tokens,
        )
        reader = _ReadElsewhere(elsewhere.workers, reading, sum(p.numel() for p in model.backbone.parameters()))
    return read_or_compute(stores, texts, reader)


def read_features(
    model: RewardModel,
    texts: Sequence[Encoded],
    specs: Sequence[FeatureSpec],
    max_tokens: int = 4096,
    elsewhere: Elsewhere | None = None,
) -> dict[FeatureSpec, Tensor]:
    """The features of heads, [n, k d] per element of `specs`, from hidden states cached by `compute_features`."""
    settings = sorted({setting for spec in specs for setting in spec})
    states = compute_features(model, texts, settings, max_tokens, elsewhere)
    return {r: torch.cat([states[s] for s in r], 1) if len(r) > 1 else states[r[0]] for r in specs}


def reader_of(reading: Reading, device: torch.device) -> Callable[[Portion], dict[LayerPooling, Tensor]]:
    """Load the backbone; returns what computes a portion's hidden states, for a worker.

    Raises `PrmError` if the backbone has other weights or settings here.
    """
    backbone = BackboneLoader().load(reading.backbone, reading.layers, reading.dtype).requires_grad_(False)
    model = build_reward_model(backbone, UserConfig("uniform"), RewardModelConfig(), n_rows=1, seed=0).to(device)
    if (found := _digest(model)) != reading.digest:
        raise PrmError(
            f"backbone {reading.backbone!r} has other weights or settings on {platform.node()} (digest {found}) than "
            f"where the command runs ({reading.digest}): copy it there"
        )
    read = _reader_of(model, reading.settings, reading.max_tokens)

    def read_portion(portion: Portion) -> dict[LayerPooling, Tensor]:
        with progress(disable=True) as bar:
            return read(portion, bar)

    return read_portion


def _digest(model: RewardModel) -> str:
    """The part of the stores' path that says by which weights and settings they were computed."""
    return feature_folder(model, (model.layers, "last")).parent.name


def _reader_of(
    model: RewardModel, settings: Sequence[LayerPooling], max_tokens: int
) -> Callable[[Portion, Bar], dict[LayerPooling, Tensor]]:
    def read(part: Portion, bar: Bar) -> dict[LayerPooling, Tensor]:
        states = read_pooled(model, part, settings, max_tokens, bar)
        for (layers, _), pooled in states.items():
            if not pooled.isfinite().all():
                raise PrmError(f"hidden states of layer {layers} are not finite: 'backbone.dtype' is too narrow")
        return states

    return read
