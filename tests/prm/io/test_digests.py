"""A run of which anything was damaged or changed is refused: nothing of it scores, and nothing is asked of the hub."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policy.config import DpoConfig
from policy.ppo.roles import Roles
from policy.setup import new_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.config_file import TrainedBy
from prm.config import BackboneConfig, RewardModelConfig, TrainConfig, UserConfig
from prm.errors import CheckpointError
from prm.io import digests
from prm.models.backbones import load_backbone
from prm.models.lora import add_lora
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex
from tests.conftest import resign

WEIGHTS, SETTINGS = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def runs(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs as they are saved: linear heads, soft prompt and policy with LoRA, and a policy with weights of its own."""
    home, users = tmp_path_factory.mktemp("runs"), UserIndex(["anna", "ben"])
    backbone = BackboneConfig(backbone_of("llama"), dtype="float32")
    soft = TrainConfig(
        train="lora", backbone=backbone, users=UserConfig(num_virtual_tokens=2), reward=RewardModelConfig("soft_prompt")
    )
    made: dict[str, Any] = {
        "linear": new_checkpoint(TrainConfig(backbone=backbone), users),
        "soft": new_checkpoint(soft, users),
        "policy": new_policy(
            DpoConfig(backbone=backbone), UserConfig(num_virtual_tokens=2), users, TrainedBy("dpo", {"beta": 0.1})
        ),
        "tuned": new_policy(
            DpoConfig(backbone=backbone, train="full"), UserConfig(), users, TrainedBy("dpo", {"beta": 0.1})
        ),
    }
    add_lora(made["soft"].model, soft.lora)
    for name, checkpoint in made.items():
        for parameter_name, parameter in checkpoint.model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter)
        (home / name).mkdir()
        checkpoints.save(checkpoint, home / name, {})
    return {path.name: path for path in home.iterdir()}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def rewrite(path: Path, change: Callable[[State], State]) -> None:
    save_file(change({k: v.clone() for k, v in load_file(path).items()}), path)


def double_alpha(path: Path) -> None:
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"lora_alpha": 2 * settings["lora_alpha"]}))


def as_pickle(path: Path) -> None:
    torch.save(load_file(path), path.with_name("adapter_model.bin"))
    path.unlink()


def few(state: State) -> State:
    return dict(sorted(state.items())[2:])


def wide(state: State) -> State:
    return {k: torch.cat([v, v]) if "lora_A" in k else torch.cat([v, v], 1) for k, v in state.items()}


def renamed(state: State) -> State:
    return {k.replace("layers.0", "layers.7"): v for k, v in state.items()}


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
    "no tensors": lambda path: save_file({}, path),
    "fewer tensors": lambda path: rewrite(path, few),
    "as a pickle": as_pickle,
}
CASES = [
    *(("soft", WEIGHTS, damage) for damage in DAMAGES),
    *(("policy", WEIGHTS, damage) for damage in DAMAGES),
    *(
        (run, name, damage)
        for run in ("linear", "policy")
        for name in ("model.safetensors", "users.safetensors")
        for damage in ("missing", "flipped")
    ),
    *(("soft", SETTINGS, damage) for damage in ("missing", "alpha")),
    *(("policy", SETTINGS, damage) for damage in ("missing", "alpha")),
    *(
        ("tuned", f"backbone/{name}", damage)
        for name in ("model.safetensors", "config.json")
        for damage in ("missing", "flipped")
    ),
]


@pytest.mark.parametrize(("run", "name", "damage"), CASES)
def test_a_file_that_is_not_as_it_was_written_is_named(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, name: str, damage: str
) -> None:
    for asked in ("hf_hub_download", "file_exists"):
        monkeypatch.setattr(f"peft.utils.save_and_load.{asked}", lambda *a, **k: pytest.fail("asked the hub"))
    folder = shutil.copytree(runs[run], tmp_path / "run")
    checkpoints.load(folder)
    (double_alpha if damage == "alpha" else DAMAGES[damage])(folder / name)
    backbone = load_backbone(checkpoints.read_config(folder).settings.backbone.name)
    loads: list[Callable[[], Any]] = [lambda: checkpoints.load(folder)]
    if run in ("linear", "soft"):
        loads.append(lambda: checkpoints.load_onto(folder, backbone))
    for load in loads:
        with pytest.raises(CheckpointError) as raised:
            load()
        assert str(raised.value).startswith(
            f"{folder / name} is {'missing' if 'pickle' in damage or damage == 'missing' else 'damaged'}"
        )


@pytest.mark.parametrize("run", ["soft", "policy"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (few, r"2 tensors are missing \(base_model\.model\."),
        (lambda state: {}, r"28 tensors are missing"),
        (renamed, r"14 tensors are missing .*; 14 tensors .*layers\.7"),
        (wide, r"lora_A\.weight has shape \[16, 32\], expected \[8, 32\]"),
        (lambda state: {k: v.double() for k, v in state.items()}, r"has dtype torch.float64, expected torch.float32"),
    ],
    ids=["fewer", "none", "others", "wide", "double"],
)
def test_an_adapter_that_does_not_fit_is_refused_whatever_its_digest(
    runs: dict[str, Path],
    tmp_path: Path,
    backbone_of: Callable[..., str],
    run: str,
    change: Callable[[State], State],
    said: str,
) -> None:
    """Also where a reward model's adapter comes into the policy's language model."""
    folder = shutil.copytree(runs[run], tmp_path / "run")
    rewrite(folder / WEIGHTS, change)
    resign(folder)
    with pytest.raises(CheckpointError, match=said):
        checkpoints.load(folder)
    if run == "soft":
        config = DpoConfig(backbone=BackboneConfig(backbone_of("llama"), dtype="float32"))
        roles = Roles(new_policy(config, UserConfig(), UserIndex(["anna"]), TrainedBy("ppo")).model, 0)
        with pytest.raises(CheckpointError, match=said.replace(r"model\.", r"model\.model\.", 1)):
            roles.add_reward(roles.value_users, folder / "adapter")


def test_an_adapter_of_another_kind_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["soft"], tmp_path / "run")
    settings = json.loads((folder / SETTINGS).read_text())
    for change, said in ({"peft_type": "IA3"}, "expected peft_type LORA"), ({"peft_type": "NONE"}, "damaged"):
        (folder / SETTINGS).write_text(json.dumps({**settings, **change}))
        resign(folder)
        with pytest.raises(CheckpointError, match=f"adapter_config.json: {said}"):
            checkpoints.load(folder)


@pytest.mark.parametrize("run", ["linear", "policy"])
def test_a_backbone_with_other_settings_is_refused(runs: dict[str, Path], tmp_path: Path, run: str) -> None:
    """The same weights turn their keys otherwise; what hidden states do not depend on may differ."""
    moved = tmp_path / "backbone"
    shutil.copytree(checkpoints.read_config(runs[run]).settings.backbone.name, moved)
    settings = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(settings | {"use_cache": False, "attention_dropout": 0.5}))
    checkpoints.load(runs[run], str(moved))
    for change in ({"rms_norm_eps": 0.5}, {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}):
        (moved / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(CheckpointError, match=f"{next(iter(change))}"):
            checkpoints.load(runs[run], str(moved))


def test_a_run_of_another_format_says_what_to_do(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["linear"], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 1}))
    with pytest.raises(CheckpointError, match=r"format 1.* 4"):
        checkpoints.load(folder)


def test_a_digest_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the digests of its blocks, however they are read."""
    monkeypatch.setattr(digests, "_BLOCK", 4)
    monkeypatch.setattr(digests, "_PIECE", 3)
    (tmp_path / "a").write_bytes(b"abcdefghij")
    parts = b"".join(hashlib.sha256(part).digest() for part in (b"abcd", b"efgh", b"ij"))
    assert digests.digest(tmp_path / "a") == hashlib.sha256(parts).hexdigest()
    (tmp_path / "a").write_bytes(b"")
    assert digests.digest(tmp_path / "a") == hashlib.sha256(b"").hexdigest()
