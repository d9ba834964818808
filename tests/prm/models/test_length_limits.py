"""What a backbone reads alike: within its table of positions, its rotary frequencies and its table of embeddings."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, Phi3Config

from policy.config import DpoConfig
from policy.setup import new_policy
from prm.checkpoint.checkpoint import load_policy
from prm.checkpoint.config_file import TrainedBy
from prm.config import BackboneConfig, TrainConfig, UserConfig
from prm.data.encoding import Encoded, pad
from prm.errors import PrmError
from prm.models.backbones import load_backbone
from prm.models.length_limits import ENDLESS, reach, window
from prm.scoring.scorer import Scorer
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.conftest import save_random

SHAPE: dict[str, Any] = {
    "vocab_size": 336, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 48,
}  # fmt: skip


def turns(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


LONG = turns("longrope", short_factor=[1.0] * 4, long_factor=[3.0] * 4)
CONFIGS: dict[str, tuple[Any, int]] = {  # settings, and the most tokens that are read alike
    "dynamic": (LlamaConfig(**SHAPE, **turns("dynamic", factor=4.0)), 48),
    "longrope": (
        Phi3Config(**SHAPE | LONG | {"max_position_embeddings": 512}, original_max_position_embeddings=48),
        48,
    ),
    "default": (LlamaConfig(**SHAPE), ENDLESS),
    "linear": (LlamaConfig(**SHAPE, **turns("linear", factor=4.0)), ENDLESS),
    "learnt": (GPT2Config(vocab_size=336, n_embd=32, n_layer=2, n_head=4, n_positions=48, eos_token_id=1), 48),
}
SHORT, OTHER = [*range(40, 60)], [*range(40, 120)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("rotary")
    return {name: save_random(home / name, AutoModelForCausalLM, c) for name, (c, _) in CONFIGS.items()}


def config_of(folder: str, length: int = 1024) -> TrainConfig:
    return TrainConfig(backbone=BackboneConfig(folder, dtype="float32", max_length=length))


@pytest.mark.parametrize("name", CONFIGS)
def test_how_much_is_read_and_that_more_would_change_it(folders: dict[str, str], name: str) -> None:
    """Twenty tokens beside eighty: their states move where frequencies switch at 48, and nowhere else."""
    most = CONFIGS[name][1]
    backbone = load_backbone(folders[name])
    assert (reach(backbone), window(backbone)) == (most, 48)
    model = new_checkpoint(config_of(folders[name]), UserIndex()).model.eval()
    texts = [Encoded(ids, (0, len(ids))) for ids in (SHORT, OTHER)]
    if name == "learnt":  # there is nothing behind the table
        with pytest.raises((IndexError, RuntimeError)):
            model.read(pad(texts))
        return
    with torch.no_grad():
        alone, together = model.read(pad(texts[:1]))[0], model.read(pad(texts))[0, : len(SHORT)]
    assert torch.allclose(alone, together, atol=1e-4) == (most == ENDLESS)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_and_answers_depend_on_nothing_that_stands_beside(
    folders: dict[str, str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Prompts are cut, and answers kept, within what is read alike; the setting is named where it is lowered."""
    most = CONFIGS[name][1]
    checkpoint = new_checkpoint(config_of(folders[name], 100), UserIndex(["anna"]))
    assert checkpoint.settings.backbone.max_length == min(100, most)
    assert ("'backbone.max_length' 100" in caplog.text) == (most == 48)
    scorer, answer = Scorer(checkpoint), "seven wizards"
    torch.nn.init.normal_(scorer.model.user_model.per_row()[0])
    alone = scorer.score("what?", [answer], "anna")
    beside = scorer.score_batch(["what?", "what of a fox? " * 20], [answer] * 2, ["anna"] * 2)[:1]
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-4)
    policy = new_policy(
        DpoConfig(backbone=config_of(folders[name]).backbone),
        UserConfig(),
        UserIndex(),
        TrainedBy("dpo"),
    )
    assert policy.settings.backbone.max_length == min(1024, most)
    sampler = Sampler.from_pretrained(folders[name], torch.device("cpu"), torch.float32)
    assert sampler.encoder.max_length == sampler.window == 48
    with pytest.raises(PrmError, match=r"\b48\b.*token|window.*\b48\b"):
        sampler.sample("what?", 1, Sampling(max_new_tokens=45))
    assert sampler.sample("what?", 1, Sampling(max_new_tokens=8, min_new_tokens=8))


LOADS: dict[str, Callable[[str], Any]] = {
    "reward model": lambda name: new_checkpoint(config_of(name), UserIndex()),
    "policy": lambda name: new_policy(
        DpoConfig(backbone=config_of(name).backbone), UserConfig(), UserIndex(), TrainedBy("dpo")
    ),
    "language model": load_policy,
}


@pytest.mark.parametrize("load", LOADS)
def test_a_tokenizer_with_more_ids_than_the_table_has_rows_is_refused(tiny: str, tmp_path: Path, load: str) -> None:
    """Its last ids would be those of people. The table has 336 rows, the tokenizer 320 words."""
    shutil.copytree(tiny, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens([f"<|{i}|>" for i in range(16)])
    tokenizer.save_pretrained(tmp_path / "m")
    LOADS[load](str(tmp_path / "m"))
    tokenizer.add_tokens(["<|one|>", "<|two|>"])
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(PrmError, match=r"337.* 336.*'<\|one\|>', '<\|two\|>'"):
        LOADS[load](str(tmp_path / "m"))
