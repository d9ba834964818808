"""Mixtures of experts learn from rewards alone: TRL's loss that keeps experts busy is no part of it."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig

from prm.io.tables import write_jsonl
from tests.conftest import build_config, save_random
from tests.tiny_runs import config_of, small_log, train_any

METHODS = ("rloo", "grpo")


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same weights twice, of which one asks for a large auxiliary loss."""
    home, made = tmp_path_factory.mktemp("mixtures"), []
    for coefficient in (0.0, 50.0):
        shape = {k: v for k, v in build_config("llama").to_dict().items() if k in MixtralConfig().to_dict()}
        shape |= {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
        config = MixtralConfig(**shape, output_router_logits=True, router_aux_loss_coef=coefficient)
        made.append(save_random(home / str(coefficient), AutoModelForCausalLM, config))
    return made


@pytest.mark.parametrize("method", METHODS)
def test_no_auxiliary_loss_is_learnt_from(
    mixtures: list[str], tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("PRM_CACHE", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "log.jsonl", small_log())
    train_any("linear", config_of("linear", tiny, tmp_path, output_dir=str(tmp_path / "reward")))
    learnt = []
    for number, backbone in enumerate(mixtures):
        folder = tmp_path / str(number)
        run = train_any("online", config_of("online", backbone, tmp_path, method=method, output_dir=str(folder)))
        learnt.append(load_file(run / "adapter/adapter_model.safetensors") | load_file(run / "model.safetensors"))
        history = json.loads((run / "metrics.json").read_text())["history"]
        assert not [name for look in history for name in look if "aux" in name]
    assert learnt[0].keys() == learnt[1].keys()
    assert any(value.any() for name, value in learnt[0].items() if "lora_B" in name)
    assert all((learnt[0][name] == learnt[1][name]).all() for name in learnt[0])
