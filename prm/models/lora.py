"""LoRA adapters on a backbone, by our settings or by a configuration of PEFT."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import PreTrainedModel

from prm.config import LoraSettings, RunConfig
from prm.errors import PrmError
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel

_OWN_HEADS = {"score", "classifier"}  # reward heads, which are trained anyway

Config = TypeVar("Config", bound=RunConfig)


def add_lora(model: RewardModel | Policy, settings: LoraSettings | LoraConfig) -> None:
    """Put float32 LoRA adapters on the backbone, which stays frozen: by settings of ours, on every linear layer.

    Raises `PrmError` for an architecture that PEFT does not support.
    """
    config = settings if isinstance(settings, LoraConfig) else _config_of(settings)
    try:
        with peft_asks_by_an_old_name():
            model.backbone = cast(PreTrainedModel, get_peft_model(model.backbone, config))
    except ValueError as error:
        name = type(model.backbone).__name__
        if isinstance(settings, LoraConfig):
            raise PrmError(f"'peft_config' does not fit {name}: {str(error).splitlines()[0]}") from None
        raise PrmError(f"config key 'train': PEFT has no LoRA adapters for {name}: set 'full'") from None


@contextmanager
def peft_asks_by_an_old_name() -> Iterator[None]:
    """Keep from the caller that PEFT reads `is_gradient_checkpointing`, which transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _config_of(settings: LoraSettings) -> LoraConfig:
    return LoraConfig(
        r=settings.r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout, target_modules="all-linear"
    )


def as_backbone_adapter(config: PeftConfig) -> LoraConfig:
    """A copy of a configuration for the backbone alone: without a task, and without a head among its modules.

    The reward head is a module of ours, which is trained and saved in any case. Raises `PrmError` for adapters that a
    run folder cannot hold.
    """
    if not isinstance(config, LoraConfig):
        raise PrmError(f"'peft_config' must be a LoraConfig, got {type(config).__name__}: runs hold LoRA adapters")
    further = set(config.modules_to_save or ()) - _OWN_HEADS
    if further:
        raise PrmError(f"'peft_config' has modules_to_save {sorted(further)}: runs hold adapters, so leave them out")
    plain = copy.copy(config)
    plain.task_type, plain.modules_to_save = None, None
    return plain


def with_adapter(config: Config, lora: LoraConfig | None) -> Config:
    """The settings with those of a `peft_config`. Raises `PrmError` if no adapters are to be trained."""
    if lora is None:
        return config
    if config.train != "lora":
        raise PrmError(f"'peft_config' is for train 'lora', but 'train' is '{config.train}': leave one of them out")
    found = replace(config.lora, r=lora.r, lora_alpha=int(lora.lora_alpha), lora_dropout=float(lora.lora_dropout))
    changed: Config = replace(cast(Any, config), lora=found)
    return changed
