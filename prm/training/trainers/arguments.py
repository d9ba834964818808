"""Arguments of the trainers that are used from Python: TRL's, with our settings under their names."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import HubStrategy
from trl import RewardConfig as TrlRewardConfig

from prm.checks import NamedArguments, Seed, Settings, Share, built, checked
from prm.config import (
    BackboneConfig,
    DataConfig,
    Dtype,
    FeedbackConfig,
    LearningRate,
    LoraSettings,
    OptimConfig,
    RewardModelConfig,
    TrainConfig,
    UserConfig,
)
from prm.errors import PrmError
from prm.training.trainers.argument_names import arguments_of, named_as_arguments
from prm.training.trainers.trainer_setting import UNSUPPORTED

Train = Literal["frozen", "lora", "full"]
Group = Mapping[str, object]  # a group of settings by name

_DTYPE = "frozen weights have the data type 'dtype', and trained weights are float32"
_LOADED = "a run must load again with the backbone as it is: save another one to a folder first, and name that"
_REFUSED: Mapping[str, str] = {
    **{name: why for name, why in UNSUPPORTED.items() if name != "hub_token"},
    "fp16": _DTYPE,
    "bf16": _DTYPE,
    "fp16_full_eval": _DTYPE,
    "bf16_full_eval": _DTYPE,
    "auto_find_batch_size": "set 'per_device_train_batch_size'",
    "model_init_kwargs": f"{_DTYPE}; {_LOADED}",
    "chat_template_path": _LOADED,
    "eos_token": _LOADED,
    "pad_token": "padding is masked",
    "pad_to_multiple_of": "padding is masked",
    "trust_remote_code": "loading never runs code of others",
    "disable_dropout": "the backbone's dropout is off, and 'lora.lora_dropout' is that of the adapters",
    "activation_offloading": "set 'gradient_checkpointing'",
    "center_rewards_coefficient": "there is no such term in the loss: scores of one prompt are compared",
}
_SCHEDULES = ("warmup_stable_decay", "cosine")
_NO_LIMIT = 1 << 20  # tokens: limited to what the backbone supports
_OPTIM = OptimConfig()
_NAMES: Mapping[str, str] = {
    **arguments_of(BackboneConfig, "backbone"),
    **arguments_of(OptimConfig, "optim"),
    "backbone.name": "model",
    "optim.epochs": "num_train_epochs",
    "optim.batch_size": "per_device_train_batch_size * gradient_accumulation_steps",
    "optim.micro_batch_size": "per_device_train_batch_size",
    "optim.lora_lr": "learning_rate",
    "optim.backbone_lr": "learning_rate",
}


@dataclass
class PersonalizedArguments(NamedArguments, TrainingArguments):
    """What the arguments of all trainers have in common; their classes come after this one among the bases.

    Args:
        alpha: weight of the personalised term; the generic user's term has 1 - alpha.
        train: what is trained of the language model: nothing with `frozen`, `lora` adapters, or the `full` model. If
            not given, that of the `model`; `lora` for one that is given by its name.
        users: the user model, `UserConfig` or a dict, as in `{"kind": "cluster", "clusters": 3}`.
        lora: the adapters, `LoraSettings` or a dict; a `peft_config` of the trainer comes before it.
        data: how rows are read, `FeedbackConfig` or a dict, as in `{"columns": {"user_id": "annotator"}}`.
        layers: keep the first k layers only; all layers if not given.
        dtype: of the frozen weights; trained weights are always float32.
        max_length: maximum tokens per sequence; the oldest prompt text is cut, never the response.
        learning_rate: of what is trained of the language model: 1e-3 for adapters, 1e-5 for the full model.
        user_lr: learning rate of the user model.
        lr_scheduler_type: `warmup_stable_decay` without `lr_scheduler_kwargs` lowers the learning rates to 0 over the
            last third of the run; others are those of transformers.
        max_grad_norm: each group's gradient (users, head, language model) is clipped to this norm.
        save_steps: save a checkpoint, from which training resumes, after so many steps.
        save_total_limit: keep so many checkpoints, the newest.
        hub_private_repo: whether a new repository is private; user ids are personal data.
    """

    alpha: float = 0.5
    train: Train | None = None
    users: UserConfig | Group = field(default_factory=UserConfig)
    lora: LoraSettings | Group = field(default_factory=LoraSettings)
    data: FeedbackConfig | Group = field(default_factory=FeedbackConfig)
    layers: int | None = None
    dtype: str = "auto"
    user_lr: float = _OPTIM.user_lr
    # transformers' fields come before TRL's, so a default of TRL's that is to hold is repeated here
    learning_rate: float = field(default=cast(float, None))
    lr_scheduler_type: SchedulerType | str = _OPTIM.lr_scheduler_type
    warmup_steps: float = _OPTIM.warmup_steps
    num_train_epochs: float = _OPTIM.epochs
    per_device_train_batch_size: int = _OPTIM.micro_batch_size
    gradient_accumulation_steps: int = _OPTIM.batch_size // _OPTIM.micro_batch_size
    gradient_checkpointing: bool | None = None  # TRL has True
    max_length: int | None = 1024
    logging_steps: float = 10
    save_steps: float = _OPTIM.eval_steps
    save_total_limit: int | None = 3
    logging_nan_inf_filter: bool = False
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.accelerator.is_available)
    hub_strategy: HubStrategy | str = "end"
    hub_private_repo: bool | None = True

    checks: ClassVar[Mapping[str, object]] = {
        "alpha": Share,
        "train": Train | None,
        "dtype": Dtype,
        "user_lr": LearningRate,
        "learning_rate": LearningRate | None,
    }
    groups: ClassVar[Mapping[str, type[Settings]]] = {"users": UserConfig, "lora": LoraSettings, "data": FeedbackConfig}
    refused: ClassVar[Mapping[str, str]] = _REFUSED
    names: ClassVar[Mapping[str, str]] = _NAMES  # of settings, as arguments

    def __post_init__(self) -> None:
        """Raise `PrmError` for a wrong value, and for an argument of others that would have no effect."""
        with self.naming_arguments():
            for one in fields(self):
                if one.name in self.refused and getattr(self, one.name) not in (one.default, [], {}):
                    raise PrmError(f"argument '{one.name}' must be left out: {self.refused[one.name]}")
            for name, kind in self.checks.items():
                setattr(self, name, checked(name, kind, getattr(self, name)))
            for name, group in self.groups.items():
                setattr(self, name, built(group, getattr(self, name), name))
            super().__post_init__()
            self.check_together()

    def check_together(self) -> None:
        """Raise `PrmError` for values that do not go together."""

    def naming_arguments(self) -> AbstractContextManager[None]:
        """A `PrmError` of the block names arguments, and not the settings that they become."""
        return named_as_arguments(self.names)

    def to_dict(self) -> dict[str, Any]:
        """All arguments, JSON-ready."""
        values: dict[str, Any] = super().to_dict()
        return {name: x.to_dict() if isinstance(x, Settings) else x for name, x in values.items()}

    def common_settings(self, name: str) -> dict[str, Any]:
        """What all runs have of these arguments, by the names of the settings; `name` is the backbone's."""
        data = DataConfig(**vars(built(FeedbackConfig, self.data, "data")))
        limit = self.max_length or _NO_LIMIT
        backbone = {"name": name, "layers": self.layers, "dtype": self.dtype, "max_length": limit}
        return {
            "output_dir": str(self.output_dir),
            "seed": checked("seed", Seed, self.seed),
            "alpha": self.alpha,
            "data": replace(data, on_artefact="warn"),
            "backbone": built(BackboneConfig, backbone, "backbone"),
            "users": built(UserConfig, self.users, "users"),
            "lora": built(LoraSettings, self.lora, "lora"),
            "optim": self.optim_config(),
        }

    def optim_config(self, total_steps: int = 0) -> OptimConfig:
        """The same as settings of ours, as far as they have them; a learning rate that is not given is ours, too.

        Args:
            total_steps: of the run, of which a share may be the warmup.
        """
        schedule, every = str(SchedulerType(self.lr_scheduler_type).value), self.eval_steps
        values: dict[str, object] = {
            "epochs": self.num_train_epochs,
            "batch_size": self.per_device_train_batch_size * self.gradient_accumulation_steps,
            "micro_batch_size": self.per_device_train_batch_size,
            "user_lr": self.user_lr,
            "warmup_steps": self.get_warmup_steps(total_steps),
            "max_grad_norm": self.max_grad_norm or 1e6,  # 0 does not clip
            "gradient_checkpointing": bool(self.activation_checkpointing),
        }
        if self.learning_rate is not None:
            values |= {"lora_lr": self.learning_rate, "backbone_lr": self.learning_rate}
        if schedule in _SCHEDULES:
            values["lr_scheduler_type"] = schedule
        if every is not None and every >= 1:
            values["eval_steps"] = int(every)
        return built(OptimConfig, values, "optim")


@dataclass
class PersonalizedRewardConfig(PersonalizedArguments, TrlRewardConfig):  # type: ignore[misc]
    """Arguments of `PersonalizedRewardTrainer`: TRL's `RewardConfig` with our settings.

    What TRL's arguments and ours both have is TRL's: `max_length`, `num_train_epochs`, `per_device_train_batch_size`.
    Defaults are those of `prm train`. Arguments that would have no effect are refused.

    Args:
        reward: how user and text become a reward, `RewardModelConfig` or a dict, as in `{"form": "soft_prompt"}`.
        head_lr: learning rate of the linear head of a soft prompt.
    """

    reward: RewardModelConfig | Group = field(default_factory=RewardModelConfig)
    head_lr: float = _OPTIM.head_lr
    disable_dropout: bool = False  # TRL would switch off that of the adapters, too

    checks: ClassVar[Mapping[str, object]] = {**PersonalizedArguments.checks, "head_lr": LearningRate}
    groups: ClassVar[Mapping[str, type[Settings]]] = {**PersonalizedArguments.groups, "reward": RewardModelConfig}

    def optim_config(self, total_steps: int = 0) -> OptimConfig:
        """As `PersonalizedArguments.optim_config`, with the head's learning rate."""
        return replace(super().optim_config(total_steps), head_lr=self.head_lr)

    def settings(self, name: str, train: Train) -> TrainConfig:
        """The same as settings of a run on the backbone `name`."""
        common = self.common_settings(name)
        return TrainConfig(**common, train=train, reward=built(RewardModelConfig, self.reward, "reward"))


Arguments = TypeVar("Arguments", bound=PersonalizedArguments)


def arguments_or_default(kind: type[Arguments], given: object, output_dir: str) -> Arguments:
    """The arguments of a trainer, or their defaults. Raises `TypeError` for those of another trainer."""
    if given is None:
        return kind(output_dir)
    if not isinstance(given, kind):
        ours, theirs = (f"{one.__module__.partition('.')[0]}.{one.__name__}" for one in (kind, type(given)))
        raise TypeError(f"'args' must be a {ours}, got a {theirs}: {ours} takes its arguments by the same names")
    return given
