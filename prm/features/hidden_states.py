"""Hidden states of a frozen backbone, computed once per text and kept on disk (`prm.features.store`)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from prm.data.encoding import Encoded
from prm.errors import PrmError
from prm.features.extract import read_pooled
from prm.features.store import ShardStore, read_kept, store_folder
from prm.io.progress import Bar
from prm.layer_pooling import FeatureSpec, Setting
from prm.models.reward_model import RewardModel


def feature_folder(model: RewardModel, setting: Setting) -> Path:
    """Where pooled hidden states of a model's backbone are kept, float32 and not standardised."""
    layers, pooling = setting
    dtype = next(model.backbone.parameters()).dtype
    return store_folder(model.fingerprint, model.config, dtype, f"{layers}-{pooling}")


def own_stores(model: RewardModel) -> list[Path]:
    """The folders of the features that a model with a linear head reads."""
    return [feature_folder(model, setting) for setting in model.reading]


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
    model.backbone.eval()

    def read(part: Sequence[Encoded], bar: Bar) -> dict[Setting, Tensor]:
        found = read_pooled(model, part, settings, max_tokens, bar)
        for (layers, _), pooled in found.items():
            if not pooled.isfinite().all():
                raise PrmError(f"hidden states behind layer {layers} are not finite: 'backbone.dtype' is too narrow")
        return found

    stores = {setting: ShardStore(feature_folder(model, setting)) for setting in settings}
    return read_kept(stores, texts, read, model.backbone, "reading texts")


def read_features(
    model: RewardModel, texts: Sequence[Encoded], readings: Sequence[FeatureSpec], max_tokens: int = 4096
) -> dict[FeatureSpec, Tensor]:
    """What heads read, [n, k d] per reading; what `compute_features` keeps on disk is shared by all of them."""
    settings = sorted({setting for reading in readings for setting in reading})
    found = compute_features(model, texts, settings, max_tokens)
    return {r: torch.cat([found[s] for s in r], 1) if len(r) > 1 else found[r[0]] for r in readings}
