"""The public policy: made from a language model, loaded from a run folder or from the hub, trained, saved, uploaded."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self, TypeVar

import torch
from peft import PeftConfig

from policy.config import DpoConfig, PpoConfig
from policy.setup import new_policy
from prm.checkpoint.config_file import POLICY, TrainedBy
from prm.checkpoint.hub_model import HubModel
from prm.checks import built
from prm.config import BackboneConfig, Dtype, LoraSettings, UserConfig
from prm.data.chat_template import today
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.models.lora import as_backbone_adapter, with_adapter
from prm.models.policy_model import Policy
from prm.training.prepare_log import DataSplit
from prm.training.setup import inherit
from prm.training.trainers.arguments import PersonalizedArguments, Train
from prm.users.index import UserIndex

logger = logging.getLogger(__name__)

UNTRAINED = TrainedBy("untrained")

Config = TypeVar("Config", DpoConfig, PpoConfig)


class PersonalizedPolicy(HubModel[Policy], library_name="personalized-rm", tags=["policy"]):
    """A language model that answers for a user, with its users, tokenizer and settings.

    `from_backbone` makes an untrained one, `from_pretrained` loads a run folder or a hub id, `PersonalizedDPOTrainer`
    trains it, and `rerank.Sampler(policy.checkpoint)` samples from it. `policy.model` is the module
    (`prm.models.policy_model`).

    Args:
        checkpoint: what `prm.checkpoint.checkpoint.load` returns.
    """

    KIND = POLICY

    @classmethod
    def from_backbone(
        cls,
        name: str | Path,
        *,
        users: UserConfig | Mapping[str, object] | None = None,
        user_ids: Iterable[str] = (),
        train: Literal["frozen", "lora", "full"] = "lora",
        lora: LoraSettings | Mapping[str, object] | None = None,
        dtype: Dtype = "auto",
        max_length: int = 1024,
        seed: int = 0,
    ) -> Self:
        """Make an untrained policy. Groups of settings are dicts or dataclasses, with the names of the YAML.

        Args:
            name: folder or hub id of a causal language model, or `smollm2-135m`.
            user_ids: users to begin with; a trainer adds those of its data, who start as the generic user.
            train: what will be trained of the language model; its weights are float32 if they are.

        Raises `PrmError` for wrong settings, and for a language model that cannot be loaded.
        """
        config = DpoConfig(
            seed=seed,
            train=train,
            backbone=BackboneConfig(str(name), None, dtype, max_length),
            users=built(UserConfig, users or {}, "users"),
            lora=built(LoraSettings, lora or {}, "lora"),
        )
        index = UserIndex()
        index.grow(user_ids)
        torch.manual_seed(seed)
        policy = cls(new_policy(config, config.users, index, UNTRAINED, today()))
        data = DataSplit([], [], []).summary("")
        policy.checkpoint.record["run.json"] = {
            "kind": POLICY,
            "config": config.to_dict(),
            "seed": seed,
            "day": today(),
            "data": data,
        }
        policy.fresh = True
        return policy


def start_policy(
    model: HubModel[Policy] | str | Path,
    args: PersonalizedArguments,
    settings: Callable[[str, Train], Config],
    comparisons: Sequence[Comparison],
    objective: TrainedBy,
    adapter: PeftConfig | None,
) -> tuple[PersonalizedPolicy, Config]:
    """(the policy that a trainer trains, with rows for all users, its arguments as the settings of a run).

    Args:
        settings: these arguments as settings, by the language model's name and what is trained of it.

    Raises `PrmError` for arguments that contradict each other, and for a policy that has been trained.
    """
    lora = as_backbone_adapter(adapter) if adapter is not None else None
    if not isinstance(model, HubModel):
        config = with_adapter(settings(str(model), args.train or "lora"), lora)
        config.check_settings()
        logger.info("loading %s", config.backbone.name)
        index = UserIndex.from_comparisons(comparisons)
        torch.manual_seed(config.seed)
        return PersonalizedPolicy(new_policy(config, config.users, index, objective, today(), lora)), config
    if not isinstance(model, PersonalizedPolicy) or not model.fresh:
        raise PrmError("the policy has been trained: a trainer starts from a language model, whose name it takes")
    if lora is not None:
        raise PrmError("'peft_config' is for a language model that is given by its name: this one has its adapters")
    checkpoint = model.checkpoint
    made = built(DpoConfig, checkpoint.record["run.json"]["config"])
    if args.train not in (None, made.train):
        raise PrmError(f"argument 'train' is '{args.train}', but the policy was made for '{made.train}': leave it out")
    config = settings(made.backbone.name, made.train)
    users = inherit("users", config.users, UserConfig(), made.users.to_dict(), Path("the policy"), [])
    config = replace(config, users=users, backbone=made.backbone, lora=made.lora)
    config.check_settings()
    checkpoint.users.learn(comparisons)
    if checkpoint.users.n_rows > checkpoint.model.user_model.n_rows:
        checkpoint.model.user_model.grow(checkpoint.users.n_rows)
    checkpoint.settings.objective, model.fresh = objective, False
    return model, config
