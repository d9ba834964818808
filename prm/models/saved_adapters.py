"""Loads LoRA adapters from run folders: complete, and never from the hub."""

import hashlib
from pathlib import Path
from typing import cast

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from prm.errors import CheckpointError, some
from prm.models.lora import peft_asks_by_an_old_name
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel

FOLDER = "adapter"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def attach_adapter(model: RewardModel | Policy, folder: Path) -> None:
    """Load a LoRA adapter into the model's backbone, which keeps its conditioned embedding.

    Raises `CheckpointError` if a file is missing, damaged or does not fit the backbone.
    """
    with peft_asks_by_an_old_name():
        backbone = PeftModel(model.backbone, _config(folder))
    _load_weights(backbone, backbone.active_adapter, folder)
    model.backbone = cast(PreTrainedModel, backbone)


def add_adapter(backbone: PeftModel, name: str, folder: Path, below: str = "") -> None:
    """Load a further LoRA adapter, frozen, into a backbone that has some. Raises as `attach_adapter` does.

    Args:
        below: prefix of the module, as in `model.`, that the adapter was trained on, if not the backbone itself.
    """
    backbone.add_adapter(name, _config(folder))
    _load_weights(backbone, name, folder, below)
    for parameter_name, parameter in backbone.named_parameters():
        if f".{name}." in parameter_name:
            parameter.requires_grad_(False)


def adapter_digest(backbone: PeftModel) -> str:
    """Hex digest of the names and values of the active adapter's tensors."""
    digest = hashlib.sha256()
    state = get_peft_model_state_dict(backbone, adapter_name=backbone.active_adapter, save_embedding_layers=False)
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _config(folder: Path) -> LoraConfig:
    for name in (_CONFIG, _WEIGHTS):  # peft looks for missing files on the hub
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing: it holds the trained adapter; copy it back")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # peft raises anything for a damaged file
        raise CheckpointError(f"{folder / _CONFIG}: damaged: {error}") from None
    if not isinstance(config, LoraConfig):
        raise CheckpointError(f"{folder / _CONFIG}: expected peft_type LORA, found {config.peft_type}")
    return config


def _load_weights(backbone: PeftModel, name: str, folder: Path, below: str = "") -> None:
    path, prefix = folder / _WEIGHTS, "base_model.model."
    try:
        state = load_file(path)
    except Exception as error:  # SafetensorError is no OSError
        raise CheckpointError(f"{path}: damaged: {error}") from None
    state = {prefix + below + key.removeprefix(prefix): tensor for key, tensor in state.items()}
    expected = get_peft_model_state_dict(backbone, adapter_name=name, save_embedding_layers=False)
    refuse_unlike(state, expected, path)
    set_peft_model_state_dict(backbone, state, adapter_name=name)


def refuse_unlike(found: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError` unless both have the same names, shapes and dtypes."""
    faults = [
        f"{len(names)} tensors {fault} ({some(names)})"
        for names, fault in (
            (expected.keys() - found.keys(), "are missing"),
            (found.keys() - expected.keys(), "are unexpected"),
        )
        if names
    ]
    for name in found.keys() & expected.keys():
        for attribute in ("shape", "dtype"):
            found_value, expected_value = getattr(found[name], attribute), getattr(expected[name], attribute)
            if found_value != expected_value:
                faults.append(f"{name} has {attribute} {_plain(found_value)}, expected {_plain(expected_value)}")
    if faults:
        raise CheckpointError(f"{path}: {'; '.join(sorted(faults)[:3])}")


def _plain(value: object) -> str:
    return str(list(value) if isinstance(value, tuple) else value)
