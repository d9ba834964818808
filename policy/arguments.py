"""Arguments of the policies' trainers that are used from Python: TRL's, with our settings under their names."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from transformers import SchedulerType
from trl import DPOConfig as TrlDpoConfig

from policy.config import DpoConfig, LossType, Objective, Ppo, PpoConfig
from prm.checks import built, checked
from prm.config import OptimConfig
from prm.errors import PrmError
from prm.training.trainers.argument_names import arguments_of
from prm.training.trainers.arguments import PersonalizedArguments, Train

_LOSS = "the loss of a pair is 'loss_type', 'beta', 'label_smoothing' and 'sft_weight'"
_REFERENCE = "the reference is the language model that training starts from, on the text without the user"
_OF_DPO: Mapping[str, str] = {
    "router_aux_loss_coef": _LOSS,
    "loss_weights": _LOSS,
    "ld_alpha": _LOSS,
    "f_divergence_type": _LOSS,
    "f_alpha_divergence_coef": _LOSS,
    "use_weighting": _LOSS,
    "discopop_tau": _LOSS,
    "precompute_ref_log_probs": _REFERENCE,
    "precompute_ref_batch_size": _REFERENCE,
    "sync_ref_model": _REFERENCE,
    "ref_model_mixup_alpha": _REFERENCE,
    "ref_model_sync_steps": _REFERENCE,
    "truncation_mode": "the oldest prompt text is cut, never the response",
    "padding_free": "texts of a batch that begin alike are read together where the backbone can",
}


@dataclass
class PersonalizedDPOConfig(PersonalizedArguments, TrlDpoConfig):  # type: ignore[misc]
    """Arguments of `PersonalizedDPOTrainer`: TRL's `DPOConfig` with our settings. Defaults are those of `policy dpo`.

    Args:
        loss_type: one of `sigmoid`, `hinge`, `robust`, `ipo` and `ipo_sequence` (`policy.config.Objective`).
        sft_weight: weight of the chosen response's negative log-likelihood, in nats per token.
    """

    sft_weight: float = 0.0
    precompute_ref_log_probs: bool = True
    disable_dropout: bool = False  # TRL would switch off that of the adapters, too

    refused: ClassVar[Mapping[str, str]] = {**PersonalizedArguments.refused, **_OF_DPO}
    names: ClassVar[Mapping[str, str]] = {**PersonalizedArguments.names, **arguments_of(Objective, "objective")}

    def check_together(self) -> None:
        """Raise `PrmError` for a loss that is not known."""
        self.objective()

    def objective(self) -> Objective:
        """The loss of a pair."""
        given = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        kind = given[0] if len(given) == 1 else given
        checked("loss_type", LossType, kind)
        rest = {"beta": self.beta, "label_smoothing": self.label_smoothing, "sft_weight": self.sft_weight}
        return built(Objective, {"loss_type": kind, **rest}, "objective")

    def settings(self, name: str, train: Train) -> DpoConfig:
        """The same as settings of a run on the language model `name`."""
        common = self.common_settings(name)
        return DpoConfig(**common, train=train, objective=self.objective())


_STEPS = "a step draws responses and trains on them: set 'max_steps', 'num_ppo_epochs' and 'save_steps'"
_NO_EVALUATION = "PPO takes all its steps and keeps the last state"
_OF_PPO: Mapping[str, str] = {
    "alpha": "the generic user is one of those for whom responses are drawn",
    "num_train_epochs": _STEPS,
    "eval_strategy": _NO_EVALUATION,
    "eval_steps": _NO_EVALUATION,
    "load_best_model_at_end": _NO_EVALUATION,
    "metric_for_best_model": _NO_EVALUATION,
    "greater_is_better": _NO_EVALUATION,
    "save_strategy": _STEPS,
    "save_total_limit": "the last two states are kept",
    "save_only_model": "states hold what resuming needs",
    "lr_scheduler_kwargs": "'lr_scheduler_type' is 'warmup_stable_decay' or 'cosine'",
    "torch_compile": "the loop is PPO's own",
    "layers": "a policy speaks with all its layers",
}
_PPO, _OPTIM = Ppo(), PpoConfig().optim


@dataclass
class PersonalizedPPOConfig(PersonalizedArguments):
    """Arguments of `PersonalizedPPOTrainer`. Defaults are those of `policy ppo`, names TRL's and our settings'.

    Batch sizes count responses. Arguments of transformers that PPO's own loop does not have are refused; `report_to`,
    `run_name`, `logging_steps` and those of uploads work.

    Args:
        max_steps: number of steps; each draws a batch of rollouts and trains on it.
        num_ppo_epochs: passes over a step's rollouts.
        rollout_batch_size: responses per step on each process.
        num_generations: responses per prompt.
        max_new_tokens: maximum length of a response, in tokens.
        kl_coef: cost of a nat of log pi / pi_ref, per token, in units of the scaled reward.
        missing_eos_penalty: subtracted from the scaled reward of a response that does not end by itself.
        lam: lambda of GAE.
        cliprange: how far the ratio of new to old probability may be from 1 and still count.
        cliprange_value: how far a new value may be from its old one, in standard deviations of reward.
        num_scale_samples: responses of the reference that fix the shift and scale of each user's rewards.
        head_lr: learning rate of the value head.
        learning_rate: of the adapters; 1e-4 if not given.
        save_steps: save a state, from which training resumes, after so many steps.
    """

    max_steps: int = _PPO.max_steps
    num_ppo_epochs: int = int(_OPTIM.epochs)
    rollout_batch_size: int = _PPO.rollout_batch_size
    num_generations: int = _PPO.num_generations
    max_new_tokens: int = _PPO.max_new_tokens
    kl_coef: float = _PPO.kl_coef
    missing_eos_penalty: float = _PPO.missing_eos_penalty
    lam: float = _PPO.lam
    cliprange: float = _PPO.cliprange
    cliprange_value: float = _PPO.cliprange_value
    num_scale_samples: int = _PPO.num_scale_samples
    head_lr: float = _OPTIM.head_lr
    user_lr: float = _OPTIM.user_lr
    warmup_steps: float = _OPTIM.warmup_steps
    save_steps: float = _OPTIM.eval_steps
    logging_steps: float = 1

    refused: ClassVar[Mapping[str, str]] = {**PersonalizedArguments.refused, **_OF_PPO}
    names: ClassVar[Mapping[str, str]] = {
        **PersonalizedArguments.names,
        **arguments_of(Ppo, "ppo"),
        "optim.epochs": "num_ppo_epochs",
        "optim.eval_steps": "save_steps",
    }

    def check_together(self) -> None:
        """Raise `PrmError` for values that do not go together."""
        checked("train", Literal["lora"] | None, self.train)
        checked(
            "lr_scheduler_type", Literal["warmup_stable_decay", "cosine"], SchedulerType(self.lr_scheduler_type).value
        )
        settings = self.settings("smollm2-135m", "lora")
        replace(settings, data=replace(settings.data, path="data")).check()

    def ppo(self) -> Ppo:
        """The rollouts and their losses."""
        return built(Ppo, {one.name: getattr(self, one.name) for one in fields(Ppo)}, "ppo")

    def optim_config(self, total_steps: int = 0) -> OptimConfig:
        """As `PersonalizedArguments.optim_config`, for PPO's loop."""
        rate = _OPTIM.lora_lr if self.learning_rate is None else self.learning_rate
        return replace(
            super().optim_config(self.max_steps),
            epochs=float(self.num_ppo_epochs),
            lora_lr=rate,
            backbone_lr=OptimConfig().backbone_lr,
            head_lr=self.head_lr,
            eval_steps=int(self.save_steps),
        )

    def settings(self, name: str, train: Train) -> PpoConfig:
        """The same as settings of a run on the language model `name`. Raises `PrmError` if adapters are not trained."""
        if train != "lora":
            raise PrmError(f"PPO trains adapters, but the policy was made for '{train}'")
        common = self.common_settings(name)
        del common["alpha"]
        return PpoConfig(**common, ppo=self.ppo())
