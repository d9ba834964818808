"""Training by gradient steps on TRL's RewardTrainer: soft prompts, and linear heads with LoRA or full training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer

from prm.config import LoraSettings, TrainConfig
from prm.data.encoding import Encoded, pad
from prm.errors import PrmError
from prm.metrics import correct, nll
from prm.models.packing import checkpointing
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel
from prm.training.losses import personalized_bradley_terry
from prm.training.trainer_base import StepTrainer, build_trainer
from prm.users.user_models import Uniform, UserModel

_LABELS = ("p_chosen", "weight")


@dataclass(frozen=True)
class EncodedPair:
    """An encoded comparison: two sequences that hold the user's row, and the label."""

    chosen: Encoded
    rejected: Encoded
    p_chosen: float
    weight: float


class PersonalizedRewardTrainer(StepTrainer, RewardTrainer):
    """TRL's RewardTrainer with the two-term loss of section F.2."""

    def __init__(self, model: RewardModel, alpha: float, **kwargs: Any):
        self.alpha = alpha
        super().__init__(model=cast(Any, model), **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted sum of the pairs' losses divided by the weight of the complete optimiser step, in nats."""
        user, generic = self.margins(model, inputs)
        losses = personalized_bradley_terry(user, generic, inputs["p_chosen"], self.alpha)
        loss = self.weighted_mean_over_step(losses, inputs["weight"], num_items_in_batch)
        if not return_outputs:
            return loss
        trained = user if user is not None and self.alpha > 0.0 else generic
        margins = (trained, generic) if generic is not None else (trained,)
        return loss, (*margins, inputs["p_chosen"], inputs["weight"])

    def margins(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """r(chosen) - r(rejected) for the comparison's user and for the generic user.

        In training a term of weight 0 is `None`; evaluation computes both, except for the uniform model.
        """
        user_model = cast(RewardModel, self.accelerator.unwrap_model(model)).user_model
        terms = terms_of(user_model, self.alpha, model.training)
        rewards = model(**{name: x for name, x in inputs.items() if name not in _LABELS}, terms=terms)

        def margin(reward: Tensor | None) -> Tensor | None:
            if reward is None:
                return None
            chosen, rejected = reward.chunk(2)
            return chosen - rejected

        return margin(rewards.user), margin(rewards.generic)


def terms_of(user_model: UserModel, alpha: float, training: bool) -> Literal["user", "generic", "both"]:
    """The terms of the loss to compute: in training those of non-zero weight; for the uniform model one."""
    if isinstance(user_model, Uniform) or (training and alpha == 0.0):
        return "generic"
    return "user" if training and alpha == 1.0 else "both"


def collate(pairs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """[2n, l] ids and masks, chosen first, as in TRL; labels and weights [n]."""
    sequences = [
        Encoded(pair[f"{side}_ids"], tuple(pair[f"{side}_response"]))
        for side in ("chosen", "rejected")
        for pair in pairs
    ]
    batch = pad(sequences)._asdict()
    batch |= {name: torch.tensor([pair[name] for pair in pairs]) for name in _LABELS}
    return batch


def to_dataset(pairs: Iterable[EncodedPair]) -> Dataset:
    """The pairs as a data set with the columns that TRL takes as already tokenised."""
    rows = [
        {
            "chosen_ids": pair.chosen.ids,
            "rejected_ids": pair.rejected.ids,
            "chosen_response": list(pair.chosen.response),
            "rejected_response": list(pair.rejected.response),
            "p_chosen": float(pair.p_chosen),
            "weight": float(pair.weight),
        }
        for pair in pairs
    ]
    return Dataset.from_list(rows)


def add_lora(model: RewardModel | Policy, settings: LoraSettings) -> None:
    """Put float32 LoRA adapters on every linear layer of the backbone, which stays frozen.

    Raises `PrmError` for an architecture that PEFT does not support.
    """
    config = LoraConfig(
        r=settings.r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout, target_modules="all-linear"
    )
    try:
        model.backbone = cast(PreTrainedModel, get_peft_model(model.backbone, config))
    except ValueError:
        name = type(model.backbone).__name__
        raise PrmError(f"config key 'train': PEFT has no LoRA adapters for {name}: set 'full'") from None


def validation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Weighted log loss (nats) and accuracy on the validation part, for its users and for the generic user.

    Early stopping uses `nll`: that of the users, or that of the generic user if alpha = 0. Raises `PrmError`, which
    ends the run, if the model's rewards are not finite.
    """
    columns = [np.asarray(column, np.float64) for column in cast(tuple[Any, ...], prediction.predictions)]
    *margins, p, weight = columns
    metrics: dict[str, float] = {}
    for name, margin in zip(["", "generic_"], margins, strict=False):
        right = correct(margin, p)
        metrics[f"{name}nll"] = float(np.average(nll(margin, p), weights=weight))
        metrics[f"{name}accuracy"] = float(np.nanmean(right)) if (p != 0.5).any() else float("nan")
    return metrics


def build_reward_trainer(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[EncodedPair],
    validation: Sequence[EncodedPair],
    config: TrainConfig,
    folder: Path,
) -> PersonalizedRewardTrainer:
    """Build the trainer of a reward model; it stops by the log loss. See `trainer_base.build_trainer`."""
    model.config.num_labels = 1  # TRL requires it; the config of a bare backbone does not say so
    if config.optim.gradient_checkpointing:
        model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing(model.backbone))
    return build_trainer(
        partial(
            PersonalizedRewardTrainer, alpha=config.alpha, data_collator=collate, compute_metrics=validation_metrics
        ),
        partial(TrlRewardConfig, max_length=None, disable_dropout=False),  # TRL would disable the adapters' dropout too
        model,
        tokenizer,
        to_dataset(train),
        to_dataset(validation),
        config,
        folder,
        stop_by="nll",
    )
