"""Backbones that share their weights: the numbers of those loaded alone, and no state in common."""

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prm.config import RewardModelConfig, UserConfig
from prm.data.encoding import Encoded
from prm.features.extract import read_pooled
from prm.io.progress import progress
from prm.models.backbone_state import switched
from prm.models.backbones import decoder_layers, load_backbone, weights_fingerprint
from prm.models.reward_model import build_reward_model
from prm.models.shared_backbone import BackboneLoader, share_weights
from tests.conftest import ARCHITECTURES

DEPTHS = (3, 1, 2, None)
TEXTS = [Encoded([7, 8, 9, 10 + i % 7, 11 + i], (2, 5)) for i in range(40)]


def states_of(backbone: PreTrainedModel) -> Tensor:
    """Pooled hidden states of the texts, [40, 32]."""
    model = build_reward_model(backbone, UserConfig("uniform"), RewardModelConfig(pooling="mean"), 1, 0)
    with progress(total=len(TEXTS), desc="", unit="text") as bar:
        return read_pooled(model, TEXTS, model.feature_spec, 64, bar)[model.layers, "mean"]


def storages(backbone: PreTrainedModel) -> set[int]:
    return {tensor.data_ptr() for tensor in backbone.state_dict().values()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_copy_of_any_depth_gives_what_it_gives_when_loaded_alone(
    backbone_of: Callable[..., str], architecture: str
) -> None:
    """To the bit, and in no memory of its own; the original stays as it was."""
    name = backbone_of(architecture, layers=4)
    complete = load_backbone(name)
    fingerprint, tensors = weights_fingerprint(complete), storages(complete)
    for depth in DEPTHS:
        copy, alone = share_weights(complete, depth), load_backbone(name, depth)
        assert storages(copy) <= tensors
        assert copy.config.to_dict() == alone.config.to_dict()
        assert weights_fingerprint(copy) == weights_fingerprint(alone) == fingerprint
        assert torch.equal(states_of(copy), states_of(alone))  # wraps its embedding
    assert len(decoder_layers(complete)) == complete.config.num_hidden_layers == 4
    assert torch.equal(states_of(complete), states_of(load_backbone(name)))


def test_a_switched_backbone_leaves_its_copy_alone(tiny: str) -> None:
    first: Any = load_backbone(tiny).train()
    second: Any = share_weights(first)
    before = second.config._attn_implementation
    with switched(first, attention="prm_packed", evaluating=True, depths=[1]) as captured:
        assert (second.config._attn_implementation, second.training) == (before, True)
        assert all(module.config is second.config for module in second.modules() if hasattr(module, "config"))
        second(input_ids=torch.tensor([[3, 4]]))
    assert captured == {}


def test_threads_compute_with_copies_of_different_depths(backbone_of: Callable[..., str]) -> None:
    name = backbone_of("llama", layers=4)
    complete = load_backbone(name)
    copies = [share_weights(complete, depth) for depth in DEPTHS * 2]
    with ThreadPoolExecutor(len(copies)) as pool:
        found = list(pool.map(states_of, copies))
    expected = [states_of(load_backbone(name, depth)) for depth in DEPTHS * 2]
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(copies)


def test_a_loader_loads_each_name_and_dtype_once(tiny: str, backbone_of: Callable[..., str], loads: list[str]) -> None:
    loader, other = BackboneLoader(), backbone_of("llama", seed=1)
    load = partial(loader.load, tiny)
    assert storages(load(1)) < storages(load(None)) == storages(load(2))
    assert load(1, torch.bfloat16).dtype == torch.bfloat16
    assert storages(loader.load(other)).isdisjoint(storages(load(None)))
    assert loads == [tiny, tiny, other]


def test_layers_that_no_model_has_are_freed_with_the_loader(backbone_of: Callable[..., str]) -> None:
    loader = BackboneLoader()
    complete: Any = loader.load(backbone_of("llama", layers=4))
    weights = [weakref.ref(layer.mlp.up_proj.weight) for layer in complete.layers]
    copies: Any = [loader.load(backbone_of("llama", layers=4), depth) for depth in (1, 2)]
    del loader, complete
    gc.collect()
    assert [weight() is not None for weight in weights] == [True, True, False, False]
    assert copies[0].layers[0].mlp.up_proj.weight is weights[0]()
