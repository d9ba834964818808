"""Shared base of the gradient trainers, on top of transformers' `Trainer`."""

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from torch.utils.tensorboard import SummaryWriter
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME

from prm.config import OptimConfig
from prm.io.disk import make_folder
from prm.io.tensors import write_tensors, written_by_others
from prm.models.backbones import processes
from prm.training.trainer_states import last_intact, seal, state_folder

logger = logging.getLogger(__name__)

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_WEIGHTS = "model.safetensors"  # the file from which transformers resumes


class RowAdamW(torch.optim.AdamW):
    """AdamW that does not move rows without a gradient, and clips each group's gradient separately.

    Groups with `rowwise=True` hold tables with one user per row. Dense Adam would move users absent from a batch by
    their momentum; here a row's moments and step count change only when the row has a gradient. Each group's gradient
    is clipped to the group's `max_norm`.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, betas=betas, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            grads = [p.grad for p in group["params"] if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(group["params"], group["max_norm"]) if grads else None
        tables = [(g, p) for g in self.param_groups if g["rowwise"] for p in g["params"] if p.grad is not None]
        for group, table in tables:
            self._step_rows(group, table)
            table.grad = None  # so that the dense step skips it
        super().step(closure)

    def _step_rows(self, group: dict[str, Any], table: Tensor) -> None:
        state, grad = self.state[table], cast(Tensor, table.grad)
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
            state["step"] = torch.zeros(len(table), device=table.device)
        rows = grad.flatten(1).ne(0).any(1).nonzero().squeeze(1)
        beta1, beta2 = group["betas"]
        g = grad[rows]
        state["step"][rows] += 1
        first = state["exp_avg"][rows].lerp_(g, 1 - beta1)
        second = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = first, second
        shape = (-1, *[1] * (table.dim() - 1))
        step = state["step"][rows].view(shape)
        denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        table[rows] -= group["lr"] * (first / (1 - beta1**step)) / denominator


class PaddedSampler(Sampler[int]):
    """A seeded order of n rows, padded to a multiple of `size` with index n (see `PaddedDataset`).

    Without padding the processes would fill the last round with pairs of the first, which would count twice. The
    order depends on the epoch and the seed, not on the number of processes.
    """

    def __init__(self, n: int, size: int, seed: int):
        self.n, self.size, self.seed, self.epoch = n, size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n // self.size) * self.size

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.n, generator=draw).tolist()
        yield from [self.n] * (len(self) - self.n)


class PaddedDataset(TorchDataset[dict[str, Any]]):
    """The n rows of a data set; index n is padding, the first row with weight 0."""

    def __init__(self, rows: Any):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index > len(self):
            raise IndexError(index)
        return self._rows[index] if index < len(self) else {**self._rows[0], "weight": 0.0}


class StateTrainer(Trainer):
    """Mix-in before one of TRL's trainers: checkpoints hold only trained weights, and no telemetry is sent."""

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = Path(cast(str, output_dir or self.args.output_dir))
            make_folder(folder)
            model = cast(nn.Module, self.accelerator.unwrap_model(self.model))
            state = {n: p for n, p in model.named_parameters() if p.requires_grad}
            write_tensors(folder / _WEIGHTS, state, metadata={"format": "pt"})

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        checkpoint = state_folder(Path(cast(str, self.args.output_dir)), self.state.global_step)
        with written_by_others(checkpoint):
            super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()  # each process writes files of its own
        if self.args.should_save:
            seal(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Do not warn: checkpoints leave out the frozen weights on purpose."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: `prm.checkpoint.checkpoint` writes the model card."""


class StepTrainer(StateTrainer):
    """Mix-in before one of TRL's trainers of pairs or responses: exact example weights.

    The loss of an optimiser step is the weighted mean over all its examples, whatever their micro-batch and process:
    every batch has a column `weight`, and `compute_loss` divides by `num_items_in_batch`, the weight of the complete
    step (`weighted_mean_over_step`). The sampler pads rounds with rows of weight 0.
    """

    loss_is_scaled_for_ga: Any = True  # compute_loss divides by the weight of the complete step

    def weighted_mean_over_step(
        self, losses: Tensor, weight: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """sum(w l) divided by the weight of the step, or by that of the batch if the step's is not given."""
        total = weight.sum() if num_items_in_batch is None else num_items_in_batch
        # gradients are averaged over processes, while `total` counts the examples of all of them
        return (losses * weight).sum() / total * self.accelerator.num_processes

    def prediction_step(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """(loss, outputs of `compute_loss` for a validation batch, its weights)."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, logits = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), logits, inputs["weight"]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        total = torch.stack([batch["weight"].sum() for batch in batch_samples]).sum().to(device)
        return cast(Tensor, self.accelerator.gather(total)).sum()

    def _get_train_sampler(self, train_dataset: Any = None) -> PaddedSampler:
        size = self.args.per_device_train_batch_size * self.accelerator.num_processes
        return PaddedSampler(len(cast(Dataset, self.train_dataset)), size, self.args.seed)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        rows = PaddedDataset(dataset) if kwargs.get("is_training") else dataset
        return super()._get_dataloader(rows, *args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # already tokenised by the encoder


def rate(step: int, total: int, optim: OptimConfig) -> float:
    """Factor in [0, 1] of the learning rates at a step (counted from 0) of `total`."""
    warmup = min(1.0, (step + 1) / max(1, optim.warmup_steps))
    if optim.lr_scheduler_type == "warmup_stable_decay":
        return warmup * min(1.0, max(0, total - step) / max(1.0, total / 3))
    done = (step - optim.warmup_steps) / max(1, total - optim.warmup_steps)
    return warmup * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))


def total_steps(examples: int, optim: OptimConfig) -> int:
    """Optimiser steps of a run over so many examples; as in transformers, a partial step counts as one."""
    per_epoch = -(-examples // (optim.batch_size * processes().num_processes))
    return max(1, math.ceil(optim.epochs * per_epoch))


def build_arguments(optim: OptimConfig, total: int, folder: Path, seed: int, stop_by: str) -> dict[str, Any]:
    """Arguments common to transformers' and TRL's trainers; `stop_by` is a validation metric, lower is better."""
    every = min(optim.eval_steps, total)
    return {
        "output_dir": str(folder / "trainer"),
        "num_train_epochs": optim.epochs,
        "per_device_train_batch_size": optim.micro_batch_size,
        "per_device_eval_batch_size": optim.micro_batch_size,
        "gradient_accumulation_steps": optim.batch_size // optim.micro_batch_size,
        "max_grad_norm": 0.0,  # the optimiser clips group by group
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 3,  # the best, the last, and a fallback
        "restore_callback_states_from_checkpoint": True,  # a resumed run keeps its patience count
        "load_best_model_at_end": True,
        "metric_for_best_model": stop_by,
        "greater_is_better": False,
        "logging_steps": min(10, every),
        "logging_nan_inf_filter": False,  # log NaN and infinite losses as they are
        "report_to": "none",
        "seed": seed,
        "use_cpu": not torch.accelerator.is_available(),
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "bf16": False,  # frozen weights have their own dtype; trained weights are float32
    }


def build_callbacks(optim: OptimConfig, folder: Path) -> list[TrainerCallback]:
    """Early stopping, and TensorBoard logs on the main process."""
    stop = EarlyStoppingCallback(early_stopping_patience=optim.early_stopping_patience)
    return [
        stop,
        *([TensorBoardCallback(SummaryWriter(str(folder / "logs")))] if processes().is_main_process else []),
    ]


def build_optimizers(groups: list[dict[str, Any]], optim: OptimConfig, total: int) -> tuple[Any, Any]:
    """The optimiser of `groups` and its learning rate schedule over `total` steps."""
    optimizer = RowAdamW(groups, betas=(0.9, 0.98))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, total, optim))


@contextmanager
def special_tokens_kept(config: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[PreTrainedTokenizerBase]:
    """Give trainers a copy of the tokenizer with a padding token; restore the config's special tokens afterwards.

    Trainers copy the tokenizer's special tokens into the config, and a reward model without a padding token would then
    read texts differently.
    """
    padded = copy.deepcopy(tokenizer)
    if padded.pad_token is None:  # any token will do: padding is masked
        padded.pad_token = padded.eos_token or padded.convert_ids_to_tokens(0)
    configs = {id(each): each for each in (config, config.get_text_config())}.values()
    before = [(each, name, getattr(each, name)) for each in configs for name in _IDS if hasattr(each, name)]
    try:
        yield padded
    finally:
        for each, name, value in before:
            setattr(each, name, value)


def run_trainer(trainer: Trainer) -> dict[str, Any]:
    """Train, from the last checkpoint if there is one; the model ends at the best validation metric."""
    folder = Path(cast(str, trainer.args.output_dir))
    checkpoint = last_intact(folder, _best_of)
    if checkpoint is not None:
        logger.info("resuming the run from %s", checkpoint)
    # an ended run is not resumed: transformers would take one more step
    if checkpoint is not None and _best_of(checkpoint) is not None and _had_ended(checkpoint):
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        trainer._load_best_model()
        seconds = 0.0
    else:
        output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = output.metrics["train_runtime"]
    stopped_by = cast(str, trainer.args.metric_for_best_model)
    return {
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "seconds": seconds,  # since the last resume, evaluations (`eval_runtime`) included
        f"validation_{stopped_by}": trainer.state.best_metric,
        "history": [entry for entry in trainer.state.log_history if f"eval_{stopped_by}" in entry],
    }


def _best_of(checkpoint: Path) -> Path | None:
    """The checkpoint with the best validation metric so far, with which the run ends."""
    best = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
    return None if best is None else Path(best)


def _had_ended(checkpoint: Path) -> bool:
    """Whether the checkpoint is that of a run without further steps, complete or stopped early."""
    callbacks = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).stateful_callbacks
    return bool(callbacks["TrainerControl"]["args"]["should_training_stop"])
