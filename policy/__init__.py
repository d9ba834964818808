"""Personalised language models: training, rewards, sampling and judging."""

from typing import TYPE_CHECKING

from prm.io.lazy import on_first_use  # importing `prm` before torch also says how its threads wait

if TYPE_CHECKING:
    from policy.arguments import PersonalizedDPOConfig, PersonalizedPPOConfig
    from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig
    from policy.dpo import PersonalizedDPOTrainer, train_dpo
    from policy.online.train import train_online
    from policy.personalized_policy import PersonalizedPolicy
    from policy.ppo.train import train_ppo
    from policy.ppo.trainer import PersonalizedPPOTrainer
    from policy.sft import train_sft
    from prm.models.policy_model import Policy

__all__ = [
    "DpoConfig",
    "OnlineConfig",
    "PersonalizedDPOConfig",
    "PersonalizedDPOTrainer",
    "PersonalizedPPOConfig",
    "PersonalizedPPOTrainer",
    "PersonalizedPolicy",
    "Policy",
    "PpoConfig",
    "SftConfig",
    "train_dpo",
    "train_online",
    "train_ppo",
    "train_sft",
]

_MODULES = {
    "DpoConfig": "policy.config",
    "OnlineConfig": "policy.config",
    "PersonalizedDPOConfig": "policy.arguments",
    "PersonalizedDPOTrainer": "policy.dpo",
    "PersonalizedPPOConfig": "policy.arguments",
    "PersonalizedPPOTrainer": "policy.ppo.trainer",
    "PersonalizedPolicy": "policy.personalized_policy",
    "PpoConfig": "policy.config",
    "SftConfig": "policy.config",
    "Policy": "prm.models.policy_model",
    "train_dpo": "policy.dpo",
    "train_online": "policy.online.train",
    "train_ppo": "policy.ppo.train",
    "train_sft": "policy.sft",
}  # imported on first use, as in prm

__getattr__, __dir__ = on_first_use(__name__, _MODULES)
