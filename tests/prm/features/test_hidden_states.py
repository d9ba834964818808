"""Cached hidden states: the same numbers as the backbone gives, computed once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.config import RewardModelConfig, UserConfig
from prm.data.encoding import Encoded, pad
from prm.errors import PrmError
from prm.features.hidden_states import compute_features, feature_folder
from prm.models.backbones import load_backbone
from prm.models.reward_model import RewardModel, build_reward_model, pool
from tests.conftest import count_tokens

TEXTS = [Encoded([7, 8, 9, 10], (2, 3)), Encoded([11, 12], (1, 2)), Encoded([7, 8, 9, 10, 11, 12, 13], (3, 6))]
SETTINGS = [(1, "last"), (1, "mean"), (2, "last"), (2, "mean")]


def model_of(folder: str, layers: int | None = None, dtype: torch.dtype = torch.float32) -> RewardModel:
    backbone = load_backbone(folder, layers, dtype)
    return build_reward_model(backbone, UserConfig("uniform"), RewardModelConfig(), 1, 0).requires_grad_(False)


def test_one_pass_gives_what_backbones_cut_to_each_depth_give(tiny: str) -> None:
    found = compute_features(model_of(tiny), TEXTS, SETTINGS)
    for layers, pooling in SETTINGS:
        cut = model_of(tiny, layers)
        with torch.no_grad():
            alone = torch.cat([pool(cut.read(pad([text])), pad([text]), pooling) for text in TEXTS])
        torch.testing.assert_close(found[layers, pooling], alone, rtol=1e-5, atol=1e-5)


def test_a_text_is_read_once_ever(tiny: str) -> None:
    model = model_of(tiny)
    read = count_tokens(model.backbone)
    first = compute_features(model, TEXTS, SETTINGS)
    assert sum(read) == 4 + 2 + 7
    again = compute_features(model, [TEXTS[2], TEXTS[0]], SETTINGS)
    assert sum(read) == 4 + 2 + 7
    assert torch.equal(again[2, "mean"], first[2, "mean"][[2, 0]])
    compute_features(model, [*TEXTS, Encoded([5, 6], (0, 1))], SETTINGS)
    assert sum(read) == 4 + 2 + 7 + 2


def test_a_text_given_twice_is_read_once(tiny: str) -> None:
    model = model_of(tiny)
    read = count_tokens(model.backbone)
    found = compute_features(model, [TEXTS[0], TEXTS[1], TEXTS[0]], [(2, "last")])[2, "last"]
    assert sum(read) == 4 + 2
    assert torch.equal(found[0], found[2])


def test_the_store_is_keyed_by_weights_dtype_and_setting(tiny: str, backbone_of: object) -> None:
    model, other = model_of(tiny), model_of(backbone_of("llama", seed=1))  # type: ignore[operator]
    folders = {
        feature_folder(model, (2, "last")),
        feature_folder(model, (1, "last")),
        feature_folder(model, (2, "mean")),
        feature_folder(model_of(tiny, dtype=torch.bfloat16), (2, "last")),
        feature_folder(other, (2, "last")),
    }
    assert len(folders) == 5
    assert feature_folder(model_of(tiny, 1), (1, "last")) in folders  # a cut reads the same store


def test_the_same_weights_with_other_settings_have_another_store(tiny: str, tmp_path: Path) -> None:
    """Rotations are no weights; a number of labels, which trainers set, turns nothing."""
    settings, folders = json.loads((Path(tiny) / "config.json").read_text()), set()
    changes: list[dict[str, Any]] = [
        {},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rms_norm_eps": 1e-3},
    ]
    for i, change in enumerate(changes):
        folder = tmp_path / str(i)
        shutil.copytree(tiny, folder)
        (folder / "config.json").write_text(json.dumps(settings | change))
        model = model_of(str(folder))
        found = feature_folder(model, (2, "last"))
        model.config.num_labels = 1
        assert feature_folder(model, (2, "last")) == found
        folders.add(found)
    assert len(folders) == 3


def test_hidden_states_that_are_no_numbers_are_refused_and_never_kept(tiny: str) -> None:
    model = model_of(tiny)
    with torch.no_grad():
        final = [p for name, p in model.backbone.named_parameters() if name.startswith("layers.1.")]
        final[0].fill_(float("inf"))
    with pytest.raises(PrmError, match="layer 2 "):
        compute_features(model, TEXTS, [(2, "last")])
    assert not feature_folder(model, (2, "last")).exists()
