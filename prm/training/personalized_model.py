"""The public reward model: made from a backbone, loaded from a run folder or from the hub, trained, saved, uploaded."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Self

import torch

from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import REWARD_MODEL
from prm.checkpoint.hub_model import HubModel
from prm.checks import built, require
from prm.config import BackboneConfig, Dtype, RewardModelConfig, TrainConfig, UserConfig
from prm.data.chat_template import today
from prm.models.reward_model import RewardModel
from prm.training.prepare_log import DataSplit
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex


class PersonalizedRewardModel(HubModel[RewardModel], library_name="personalized-rm", tags=["reward-model"]):
    """A reward model r(prompt, response, user) with its users, tokenizer and settings.

    `from_backbone` makes an untrained one, `from_pretrained` loads a run folder or a hub id,
    `PersonalizedRewardTrainer` trains it, and `prm.Scorer(model)` scores with it. `model.model` is the module
    (`prm.models.reward_model`).

    Args:
        checkpoint: what `prm.checkpoint.checkpoint.load` returns.
    """

    KIND = REWARD_MODEL

    @classmethod
    def from_backbone(
        cls,
        name: str | Path,
        *,
        users: UserConfig | Mapping[str, object] | None = None,
        reward: RewardModelConfig | Mapping[str, object] | None = None,
        user_ids: Iterable[str] = (),
        train: Literal["frozen", "lora", "full"] = "lora",
        layers: int | None = None,
        dtype: Dtype = "auto",
        max_length: int = 1024,
        seed: int = 0,
    ) -> Self:
        """Make an untrained model. Groups of settings are dicts or dataclasses, with the names of the YAML.

        Args:
            name: folder or hub id of a language model or of a reward model, or `smollm2-135m`.
            user_ids: users to begin with; a trainer adds those of its data.
            train: what will be trained of the backbone; its weights are float32 if they are.

        Raises `PrmError` for wrong settings, and for a backbone that cannot be loaded.
        """
        config = TrainConfig(
            seed=seed,
            train=train,
            backbone=BackboneConfig(str(name), layers, dtype, max_length),
            users=built(UserConfig, users or {}, "users"),
            reward=built(RewardModelConfig, reward or {}, "reward"),
        )
        model = cls(untrained(config, user_ids))
        model.fresh = True
        return model


def untrained(config: TrainConfig, user_ids: Iterable[str]) -> Checkpoint[RewardModel]:
    """An untrained model that can be saved as a run. Raises `PrmError` as `new_checkpoint` does, and for `bayes`."""
    refuse_without_gradients(config)
    config.check_model()
    index = UserIndex()
    index.grow(user_ids)
    torch.manual_seed(config.seed)
    day = today()
    checkpoint = new_checkpoint(config, index, day)
    data = DataSplit([], [], []).summary("")
    checkpoint.record["run.json"] = {
        "kind": REWARD_MODEL,
        "config": config.to_dict(),
        "seed": config.seed,
        "day": day,
        "data": data,
    }
    return checkpoint


def refuse_without_gradients(config: TrainConfig) -> None:
    """Raise `PrmError` for a model that is fitted and not trained by gradient steps."""
    require(config.users.kind != "bayes", "users.kind", "'bayes' has no gradient steps: prm.train fits it")
    require(config.reward.kernel == "linear", "reward.kernel", "'rbf' has no gradient steps: prm.train fits it")
