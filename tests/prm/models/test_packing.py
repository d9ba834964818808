"""Packs give what each sequence gives alone, and backbones that cannot read them are known."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tqdm import tqdm
from transformers import (
    AutoModel,
    Gemma2Config,
    GPT2Config,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
)

from prm.attention import prefix_tree
from prm.attention.prefix_tree import make_plan
from prm.config import RewardModelConfig, UserConfig
from prm.data.encoding import Encoded, batches, pad
from prm.features.extract import read_logps, read_pooled
from prm.models import packing
from prm.models.backbones import load_backbone, load_causal_lm
from prm.models.packing import can_pack, read_packs
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel, build_reward_model
from prm.users.kinds import Individual
from tests.conftest import count_tokens

SHAPE: dict[str, Any] = {
    "vocab_size": 336,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 1}


def families(seed: int, users: int = 0) -> list[Encoded]:
    """Prompts of 1 to 30 tokens with 1 to 4 answers of 1 to 40, as sequences in random order; users stand behind."""
    draw = random.Random(seed)
    out = []
    for _ in range(5):
        prompt = [draw.randrange(5, 9) for _ in range(draw.randrange(1, 31))]
        for _ in range(draw.randrange(1, 5)):
            ids = [*prompt, *(draw.randrange(5, 300) for _ in range(draw.randrange(1, 41)))]
            response = (len(prompt), len(ids))
            out.append(Encoded(ids, response))
            out += [Encoded([*ids, 336 + user], response) for user in range(draw.randrange(users + 1))]
    draw.shuffle(out)
    return out


def random_model(config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    return model


def reward_model(folder: str, user_tokens: int = 0) -> RewardModel:
    users = UserConfig("individual", num_virtual_tokens=user_tokens) if user_tokens else UserConfig("uniform")
    form = (
        RewardModelConfig("soft_prompt", "suffix")
        if user_tokens
        else RewardModelConfig(features=["1 mean", "2 last", "2 mean"])
    )
    model = build_reward_model(load_backbone(folder), users, form, 8, 0).eval()
    torch.nn.init.normal_(next(iter(model.user_model.parameters())), std=0.5)
    return model


@pytest.mark.parametrize("max_tokens", [1, 17, 60, 4096])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "qwen2"])
@pytest.mark.parametrize("worth", [1, 8])
@torch.no_grad()
def test_states_are_those_of_each_sequence_alone(
    backbone_of: Callable[..., str], architecture: str, max_tokens: int, worth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_tree, "_MIN_SAVED_TOKENS", worth)
    backbone = load_backbone(backbone_of(architecture))
    assert can_pack(backbone)
    sequences = [s.ids for s in families(max_tokens)]
    tree = make_plan(sequences)
    read = count_tokens(backbone)
    states = torch.cat([out.last_hidden_state[0] for _, out, _ in read_packs(backbone, tree, max_tokens)])
    assert sum(read) == len(tree.ids)
    for i, ids in enumerate(sequences):
        alone = backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(states[tree.tokens(i, 0, len(ids))], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_pooled_states_are_those_of_the_plain_path(tiny: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several depths and both poolings, and users behind the text."""
    for model, texts in ((reward_model(tiny), families(seed)), (reward_model(tiny, 1), families(seed, users=6))):
        found = read_pooled(model, texts, model.feature_spec, 50, tqdm(disable=True))
        with monkeypatch.context() as patch:
            patch.setattr("prm.features.extract.can_pack", lambda backbone: False)
            read = count_tokens(model.backbone)
            plain = read_pooled(model, texts, model.feature_spec, 50, tqdm(disable=True))
        assert len(read) > 5  # it was the plain path
        for setting in model.feature_spec:
            torch.testing.assert_close(found[setting], plain[setting], rtol=0, atol=1e-4)
            alone = torch.cat([model.pooled_at(pad([text]), [setting])[setting] for text in texts])
            torch.testing.assert_close(plain[setting], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("max_tokens", [1, 50, 4096])
@torch.no_grad()
def test_log_probabilities_are_those_of_each_sequence_alone(tiny: str, max_tokens: int) -> None:
    """Answers to one prompt share the logits of its last token; users in front."""
    users = Individual(4, 2, 32)
    torch.nn.init.normal_(users.offsets, std=0.5)
    policy = Policy(load_causal_lm(tiny), users).eval()
    texts = [Encoded([336 + 2 * (i % 3), 337 + 2 * (i % 3), *s.ids], (s.response[0] + 2, s.response[1] + 2))
             for s in families(3) for i in range(3)]  # fmt: skip
    found = read_logps(policy, texts, max_tokens, tqdm(disable=True))
    alone = torch.cat([policy.logps(pad([text])) for text in texts])
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "can"),
    [
        (GPT2Config(**SHAPE, **ENDS), True),
        (Phi3Config(**SHAPE, **ENDS), True),
        (Qwen2Config(**SHAPE, num_key_value_heads=2), True),
        (Qwen2Config(**SHAPE, **WINDOW, num_key_value_heads=2), False),
        (MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=8), False),
        (MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=None), True),
        (Gemma2Config(**SHAPE, num_key_value_heads=2), False),
        (MambaConfig(**SHAPE), False),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, bool) else str(value),
)  # fmt: skip
def test_which_backbones_can(config: object, can: bool) -> None:
    """Windows, score caps and recurrent layers cannot; the others give what each sequence gives alone."""
    backbone = random_model(config)
    assert can_pack(backbone) == can
    if can:
        before = backbone.config._attn_implementation
        sequences = [s.ids for s in families(0)]
        tree = make_plan(sequences)
        with torch.no_grad():
            states = torch.cat([out.last_hidden_state[0] for _, out, _ in read_packs(backbone, tree, 60)])
            for i, ids in enumerate(sequences):
                alone = backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
                torch.testing.assert_close(states[tree.tokens(i, 0, len(ids))], alone, rtol=0, atol=1e-4)
        assert backbone.config._attn_implementation == before


def test_a_backbone_that_does_otherwise_than_it_says_is_found_out(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that ignores the attention it is given reads all texts as one: it is tried out."""
    backbone = load_backbone(tiny)
    monkeypatch.setattr(packing, "_NAME", "sdpa")
    assert packing._is_supported(backbone)
    assert not can_pack(backbone)


def test_batches_hold_every_index_once_within_the_budget() -> None:
    lengths = [5, 100, 7, 7, 30, 1, 64]
    found = list(batches(lengths, max_tokens=64))
    assert sorted(i for batch in found for i in batch) == list(range(7))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 64 for batch in found if len(batch) > 1)
    assert found[0] == [1]  # longer than the budget: alone


@pytest.mark.model
@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_the_embedded_backbone_takes_packs(dtype: torch.dtype, far: float) -> None:
    """Cut to six layers; relative to the size of the states."""
    backbone = load_backbone("smollm2-135m", 6, dtype)
    assert can_pack(backbone)
    draw = random.Random(0)
    prompt = [draw.randrange(100, 40000) for _ in range(60)]
    sequences = [[*prompt, *(draw.randrange(100, 40000) for _ in range(n))] for n in (20, 5, 33)]
    tree = make_plan(sequences)
    states = torch.cat([out.last_hidden_state[0] for _, out, _ in read_packs(backbone, tree, 80)])
    for i, ids in enumerate(sequences):
        alone = backbone(input_ids=torch.tensor([ids])).last_hidden_state[0].float()
        apart = states[tree.tokens(i, 0, len(ids))].float() - alone
        assert float((apart.norm(dim=-1) / alone.norm(dim=-1)).max()) < far
