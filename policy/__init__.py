"""Personalised language models: training, rewards, sampling and judging."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig

if TYPE_CHECKING:
    from policy.dpo import train_dpo
    from policy.online.train import train_online
    from policy.ppo.train import train_ppo
    from policy.sft import train_sft
    from prm.models.policy_model import Policy

__all__ = [
    "DpoConfig",
    "OnlineConfig",
    "Policy",
    "PpoConfig",
    "SftConfig",
    "train_dpo",
    "train_online",
    "train_ppo",
    "train_sft",
]

_LAZY = {
    "Policy": "prm.models.policy_model",
    "train_dpo": "policy.dpo",
    "train_online": "policy.online.train",
    "train_ppo": "policy.ppo.train",
    "train_sft": "policy.sft",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'policy' has no attribute {name!r}")
