"""No backbone drops anything of its own in training, whatever its architecture calls it; adapters do."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig

from prm.config import LoraSettings, RewardModelConfig
from prm.models.lora import add_lora
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel
from prm.users.kinds import Uniform

SHAPE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
WIDE = SHAPE | {"intermediate_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 1}
MIXED = WIDE | {"num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": SHAPE,
    "opt": SHAPE | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64, "layerdrop": 0.5},
    "bloom": SHAPE,
    "falcon": SHAPE | {"alibi": False},
    "gpt_neox": WIDE,
    "gptj": SHAPE | {"rotary_dim": 4, "n_inner": 64},
    "gpt_neo": SHAPE | {"attention_types": [[["global"], 2]], "num_layers": 2},
    "gpt_bigcode": SHAPE,
    "codegen": SHAPE | {"rotary_dim": 4, "n_inner": 64},
    "phi": WIDE,
    "phi3": WIDE,
    "stablelm": WIDE | {"num_key_value_heads": 2},
    "starcoder2": WIDE | {"num_key_value_heads": 2},
    "llama": WIDE,
    "mixtral": MIXED | {"router_jitter_noise": 0.5},
    "biogpt": WIDE | {"layerdrop": 0.5},
    "xglm": {"vocab_size": 64, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "layerdrop": 0.5},
    "bart": {"vocab_size": 64, "d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4},
}
IDS = torch.randint(2, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def dropping(family: str) -> PretrainedConfig:
    """A tiny config in which everything that may be dropped is, every other time."""
    config = AutoConfig.for_model(family, **FAMILIES[family])
    config.is_decoder, config.add_cross_attention = True, False
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, name, 0.5)
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_has_the_dropout_of_its_reference(family: str) -> None:
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(dropping(family))
    backbone.train()
    mask = torch.ones_like(IDS)
    assert not torch.equal(*(backbone(input_ids=IDS, attention_mask=mask).logits for _ in range(2)))  # it did drop
    policy = Policy(backbone, Uniform(1, 0, 32))
    policy.eval()
    expected = policy(IDS, mask).logits
    policy.train()
    for _ in range(3):
        torch.testing.assert_close(policy(IDS, mask).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_reward_model_has_the_dropout_of_its_adapters(family: str) -> None:
    torch.manual_seed(0)
    model = RewardModel(AutoModel.from_config(dropping(family)), Uniform(1, 1, 32), RewardModelConfig())
    mask = torch.ones_like(IDS, dtype=torch.bool)
    user = torch.full((2, 1), model.vocab_size)
    batch = torch.cat([user, IDS], 1), torch.cat([mask[:, :1], mask], 1), torch.cat([~mask[:, :1], mask], 1)

    def rewards() -> torch.Tensor:
        found = model(*batch, terms="generic").generic
        assert found is not None
        return found

    torch.nn.init.normal_(model.user_model.shared()[0])
    expected = rewards()
    model.train()
    assert torch.equal(rewards(), expected)
    add_lora(model, LoraSettings(lora_dropout=0.5))
    for name, parameter in model.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.train()
    assert not torch.equal(rewards(), rewards())
