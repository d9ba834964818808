"""Hidden states of a frozen backbone, computed once per text and cached on disk (`prm.features.store`)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prm.config import FeatureSpec, LayerPooling
from prm.data.encoding import Encoded
from prm.errors import PrmError
from prm.features.extract import read_pooled
from prm.features.store import ShardStore, read_or_compute, store_folder
from prm.io.progress import Bar
from prm.models.reward_model import RewardModel


def feature_folder(model: RewardModel, setting: LayerPooling) -> Path:
    """The cache folder of a setting's pooled hidden states, float32 and not standardised."""
    layers, pooling = setting
    dtype = next(model.backbone.parameters()).dtype
    return store_folder(model.fingerprint, model.config, dtype, f"{layers}-{pooling}")


def own_stores(model: RewardModel) -> list[Path]:
    """The cache folders of the features of a model with a linear head."""
    return [feature_folder(model, setting) for setting in model.feature_spec]


@torch.no_grad()
def compute_features(
    model: RewardModel, texts: Sequence[Encoded], settings: Sequence[LayerPooling], max_tokens: int = 4096
) -> dict[LayerPooling, Tensor]:
    """Pooled hidden states [n, d] per setting; computes those that are not cached, and caches them.

    Args:
        model: its backbone must be frozen and at least as deep as the deepest setting.
        texts: sequences without user ids.
        settings: all computed in one pass of the backbone.

    Raises `PrmError` for hidden states that are not finite, and does not cache them.
    """

    def read(part: Sequence[Encoded], bar: Bar) -> dict[LayerPooling, Tensor]:
        states = read_pooled(model, part, settings, max_tokens, bar)
        for (layers, _), pooled in states.items():
            if not pooled.isfinite().all():
                raise PrmError(f"hidden states of layer {layers} are not finite: 'backbone.dtype' is too narrow")
        return states

    stores = {setting: ShardStore(feature_folder(model, setting)) for setting in settings}
    return read_or_compute(stores, texts, read, model.backbone, "computing hidden states")


def read_features(
    model: RewardModel, texts: Sequence[Encoded], specs: Sequence[FeatureSpec], max_tokens: int = 4096
) -> dict[FeatureSpec, Tensor]:
    """The features of heads, [n, k d] per element of `specs`, from hidden states cached by `compute_features`."""
    settings = sorted({setting for spec in specs for setting in spec})
    states = compute_features(model, texts, settings, max_tokens)
    return {r: torch.cat([states[s] for s in r], 1) if len(r) > 1 else states[r[0]] for r in specs}
