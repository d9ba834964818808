"""Training by gradient steps on TRL's RewardTrainer: soft prompts, and linear heads with LoRA or full training."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import DataCollator, EvalPrediction, PreTrainedTokenizerBase, TrainerCallback
from trl import RewardTrainer

from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.hub_model import HubModel
from prm.config import TrainConfig
from prm.data.comparison import Comparison
from prm.metrics import correct, nll
from prm.models.packing import checkpointing
from prm.models.reward_model import RewardModel
from prm.training.encoded_pairs import LABELS, EncodedPair, collate, to_dataset
from prm.training.losses import personalized_bradley_terry
from prm.training.personalized_model import PersonalizedRewardModel
from prm.training.setup import encode_pairs
from prm.training.trainers.arguments import PersonalizedRewardConfig, arguments_or_default
from prm.training.trainers.python_trainer import ComputeMetrics, PythonTrainer, folder_for, with_callers
from prm.training.trainers.reward_start import prepare, start_model
from prm.training.trainers.step_trainer import build_trainer
from prm.training.trainers.train_datasets import TrainerData
from prm.users.kinds import Uniform
from prm.users.user_model import UserModel


class PersonalizedRewardTrainer(PythonTrainer, RewardTrainer):
    """TRL's `RewardTrainer` with users: the two-term loss of section F.2, weighted pairs and soft labels.

    Args:
        model: a `PersonalizedRewardModel`, or the name of a backbone: a hub id, a folder (also of a reward model or a
            run), or `smollm2-135m`.
        args: `PersonalizedRewardConfig`; its defaults if not given.
        train_dataset: a `datasets.Dataset` in a form that TRL's trainer takes, with a column `user_id`, and optionally
            `user_text`, `p_chosen` and `weight`; or a list of dicts or of comparisons, a pandas frame, or a path.
        eval_dataset: the same, or a dict of several by name.
        processing_class: the backbone's own tokenizer; it is loaded if not given.
        compute_metrics: further metrics beside log loss and accuracy, of predictions (the margins for the users, those
            for the generic user, `p_chosen`, `weight`); a name of ours replaces ours.
        callbacks: of transformers.
        optimizers: by default `RowAdamW` with a learning rate for each group of parameters, and our schedule.
        peft_config: a `LoraConfig` for the adapters, instead of `args.lora`.

    Raises `PrmError` for arguments that contradict each other or the model, `DataError` for a bad row, and `TypeError`
    for `args` or a model of another class.
    """

    personalized: PersonalizedRewardModel
    LOGGED = ("accuracy", "margin")  # TRL's names; a tie counts half

    def __init__(
        self,
        model: PersonalizedRewardModel | str | Path,
        args: PersonalizedRewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: object = None,
        eval_dataset: object = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: ComputeMetrics | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
        peft_config: PeftConfig | None = None,
    ):
        args = arguments_or_default(PersonalizedRewardConfig, args, folder_for(model, "reward"))
        self._given, self.alpha = args, args.alpha
        super().__init__(
            model,
            args,
            data_collator or collate,
            train_dataset,
            eval_dataset,
            processing_class,
            with_callers(validation_metrics, compute_metrics),
            callbacks,
            optimizers,
            peft_config,
        )

    def prepared(
        self,
        model: HubModel[Any] | str | Path,
        train: TrainerData,
        peft_config: PeftConfig | None,
    ) -> tuple[TrainConfig, Dataset]:
        """(the arguments as settings of a run, the encoded training data); makes the model."""
        started = start_model(model, self._given, train.comparisons, peft_config)
        self.personalized, self.rows_only, config = started.model, started.rows_only, started.config
        if started.rows_only:
            self.alpha = 1.0  # the generic term would train nothing
        self._encoder = self.personalized.checkpoint.encoder()
        pairs = self._pairs(train.comparisons, config.users.text_dropout, config.seed)
        if started.is_new:
            prepare(self.personalized.checkpoint, pairs, config, started.adapter)
        as_trl_expects(self.personalized.model, config)
        return replace(config, data=replace(config.data, path=train.path)), to_dataset(pairs)

    def _pairs(self, comparisons: Sequence[Comparison], dropout: float = 0.0, seed: int = 0) -> list[EncodedPair]:
        return encode_pairs(self._encoder, self.personalized.checkpoint.users, comparisons, dropout, seed)

    def encode(self, comparisons: Sequence[Comparison]) -> Dataset:
        """Comparisons for validation, encoded for the model. Raises `DataError` for a response that does not fit."""
        return to_dataset(self._pairs(comparisons))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted sum of the pairs' losses divided by the weight of the complete optimiser step, in nats."""
        user, generic = self.margins(model, inputs)
        p_chosen, weight = inputs["p_chosen"], inputs["weight"]
        losses = personalized_bradley_terry(user, generic, p_chosen, self.alpha)
        loss = self.weighted_mean_over_step(losses, weight, num_items_in_batch)
        trained = cast(Tensor, user if user is not None and self.alpha > 0.0 else generic)
        if not return_outputs:
            self.count(_logged(trained.detach(), p_chosen), weight)
            return loss
        margins = (trained, generic) if generic is not None else (trained,)
        return loss, (*margins, p_chosen, weight)

    def margins(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """r(chosen) - r(rejected) for the comparison's user and for the generic user.

        In training a term of weight 0 is `None`; evaluation computes both, except for the uniform model.
        """
        user_model = cast(RewardModel, self.accelerator.unwrap_model(model)).user_model
        terms = terms_of(user_model, self.alpha, model.training)
        rewards = model(**{name: x for name, x in inputs.items() if name not in LABELS}, terms=terms)

        def margin(reward: Tensor | None) -> Tensor | None:
            if reward is None:
                return None
            chosen, rejected = reward.chunk(2)
            return chosen - rejected

        return margin(rewards.user), margin(rewards.generic)


def _logged(margin: Tensor, p_chosen: Tensor) -> Tensor:
    """[n, 2]: whether the pair is in the right order, a half for a tie, and its margin in favour of chosen."""
    right = torch.where(p_chosen == 0.5, 0.5, ((margin > 0) == (p_chosen > 0.5)).float())
    return torch.stack([right, margin], dim=1)


def terms_of(user_model: UserModel, alpha: float, training: bool) -> Literal["user", "generic", "both"]:
    """The terms of the loss to compute: in training those of non-zero weight; for the uniform model one."""
    if isinstance(user_model, Uniform) or (training and alpha == 0.0):
        return "generic"
    return "user" if training and alpha == 1.0 else "both"


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


def as_trl_expects(model: RewardModel, config: TrainConfig) -> None:
    """Say that there is one label, and recompute activations in the backward pass if the settings say so."""
    model.config.num_labels = 1  # TRL requires it; the config of a bare backbone does not say so
    if config.optim.gradient_checkpointing:
        model.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs=checkpointing(model.backbone))


def build_reward_trainer(
    checkpoint: Checkpoint[RewardModel],
    train: Sequence[EncodedPair],
    validation: Sequence[EncodedPair],
    config: TrainConfig,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> PersonalizedRewardTrainer:
    """Build the trainer of a command; it stops by the log loss. See `step_trainer.build_trainer`."""
    as_trl_expects(checkpoint.model, config)
    return build_trainer(
        PersonalizedRewardTrainer,
        partial(PersonalizedRewardConfig, max_length=None, alpha=config.alpha),
        PersonalizedRewardModel(checkpoint),
        checkpoint.tokenizer,
        to_dataset(train),
        to_dataset(validation),
        config,
        folder,
        stop_by="nll",
        callbacks=callbacks,
    )
