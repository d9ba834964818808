"""Shared base of the gradient trainers, on top of transformers' `Trainer`."""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    EarlyStoppingCallback,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME

from prm.checkpoint.hub_model import HubModel
from prm.config import OptimConfig, RunConfig
from prm.io.disk import make_folder
from prm.io.tables import parse_json, write_json
from prm.io.tensors import write_tensors, written_by_others
from prm.models.backbones import processes
from prm.models.packing import can_pack
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel
from prm.training.encoded_pairs import DatasetRow
from prm.training.trainers.optimizer import RowAdamW, parameter_groups, rate
from prm.training.trainers.progress_bar import training_bar
from prm.training.trainers.resume import last_intact, seal, state_folder
from prm.training.trainers.sharding import (
    gather_weights,
    is_sharded,
    load_optimizer,
    load_weights,
    save_optimizer,
    trained_weights,
)
from prm.training.trainers.trainer_setting import passed_on

logger = logging.getLogger(__name__)

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
WEIGHTS = "model.safetensors"  # the file from which transformers resumes
_SCHEDULE = "scheduler.json"  # of the rates, where weights are sharded


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


class PaddedDataset(TorchDataset[DatasetRow]):
    """The n rows of a data set; index n is padding, the first row with weight 0."""

    def __init__(self, rows: Dataset):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> DatasetRow:
        if index > len(self):
            raise IndexError(index)
        return self._rows[index] if index < len(self) else {**self._rows[0], "weight": 0.0}


class StateTrainer(Trainer):
    """Mix-in before one of TRL's trainers: checkpoints hold only trained weights, and no telemetry is sent.

    They hold them whole, also where FSDP2 shards them.
    """

    last_checkpoint: Path | None = None  # that this training has saved, or goes on from

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights of a checkpoint."""
        if self.is_fsdp_enabled:
            self._save(output_dir)  # by every process, for sharded weights to be gathered
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        model = cast(nn.Module, self.accelerator.unwrap_model(self.model))
        state = trained_weights(model, here=self.args.should_save)
        if self.args.should_save:
            folder = Path(cast(str, output_dir or self.args.output_dir))
            make_folder(folder)
            write_tensors(folder / WEIGHTS, state, metadata={"format": "pt"})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        model, optimizer = cast(nn.Module, self.model), cast(Optimizer, self.optimizer)
        save_optimizer(self.accelerator, optimizer, model, Path(output_dir))
        if self.args.should_save:
            write_json(Path(output_dir) / _SCHEDULE, cast(LRScheduler, self.lr_scheduler).state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            model, optimizer = cast(nn.Module, self.model), cast(Optimizer, self.optimizer)
            load_optimizer(self.accelerator, optimizer, model, Path(checkpoint))
            schedule = parse_json((Path(checkpoint) / _SCHEDULE).read_text(encoding="utf-8"))
            cast(LRScheduler, self.lr_scheduler).load_state_dict(cast(dict[str, object], schedule))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            self._load_weights(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            self._load_weights(cast(str, self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _load_weights(self, checkpoint: str) -> None:
        load_weights(cast(nn.Module, self.model), load_file(Path(checkpoint) / WEIGHTS))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        checkpoint = state_folder(Path(cast(str, self.args.output_dir)), self.state.global_step)
        with written_by_others(checkpoint):
            super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()  # each process writes files of its own
        if self.args.should_save:
            seal(checkpoint)
        self.last_checkpoint = checkpoint

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

    LOGGED: ClassVar[tuple[str, ...]] = ()  # names of what `count` is given, for the log of training steps
    loss_is_scaled_for_ga: Any = True  # compute_loss divides by the weight of the complete step
    _sums: Tensor | None = None  # since the last log: sums of weight times values, and of the weights

    def weighted_mean_over_step(
        self, losses: Tensor, weight: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """sum(w l) divided by the weight of the step, or by that of the batch if the step's is not given."""
        total = weight.sum() if num_items_in_batch is None else num_items_in_batch
        # gradients are averaged over processes, while `total` counts the examples of all of them
        return (losses * weight).sum() / total * self.accelerator.num_processes

    def count(self, values: Tensor, weight: Tensor) -> None:
        """Add values [n, len(LOGGED)] of n examples with weights [n] to the means of the next log."""
        sums = torch.cat([weight @ values, weight.sum()[None]]).detach()
        self._sums = sums if self._sums is None else self._sums + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Transformers' log; that of training steps with the weighted means of `LOGGED` since the last one."""
        if "loss" in logs and self._sums is not None:  # all processes log at the same steps
            sums = cast(Tensor, self.accelerator.reduce(self._sums, "sum"))
            logs = logs | dict(zip(self.LOGGED, (sums[:-1] / sums[-1]).tolist(), strict=True))
            self._sums = None
        super().log(logs, start_time)

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


def total_steps(examples: int, optim: OptimConfig) -> int:
    """Optimiser steps of a run over so many examples; as in transformers, a partial step counts as one."""
    per_epoch = -(-examples // (optim.batch_size * processes().num_processes))
    return max(1, math.ceil(optim.epochs * per_epoch))


def build_trainer(
    trainer: Callable[..., AnyTrainer],
    arguments: Callable[..., TrainingArguments],
    model: RewardModel | Policy | HubModel[Any],
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset,
    config: RunConfig,
    folder: Path,
    stop_by: str,
    steps: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> AnyTrainer:
    """Build a trainer with early stopping on the validation part, TensorBoard logs, and checkpoints in `folder`.

    Args:
        trainer: its class; `functools.partial` adds what is not the same for all trainers.
        arguments: the class of its arguments, likewise.
        stop_by: the validation metric of early stopping; lower is better.
        steps: number of optimiser steps, if they are not `optim.epochs` passes over `train`.
        callbacks: further ones of the caller.
    """
    total = total_steps(len(train), config.optim) if steps is None else steps
    settings = arguments(**_arguments(config.optim, total, folder, config.seed, stop_by) | passed_on(config.trainer))
    # several GPUs need `accelerate launch`; a single process must not spread the model over them (DataParallel)
    settings._n_gpu = min(1, settings.n_gpu)
    built = trainer(
        model=model,
        args=settings,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[*_callbacks(config.optim, folder), *callbacks],
    )
    # not as an argument, which transformers refuses with FSDP
    core = model.model if isinstance(model, HubModel) else model
    if is_sharded():
        can_pack(core.backbone)  # a test on a few tokens, which layers that are sharded must not read by themselves
        if built.accelerator.distributed_type != DistributedType.FSDP and built.accelerator.is_main_process:
            logger.warning("accelerate shards no weights on this device: every process trains the whole model (DDP)")
    built.optimizer, built.lr_scheduler = _optimizers(core, config, total)
    built.remove_callback(PrinterCallback)  # prints what is logged; `training_bar` shows it
    return built


def _arguments(optim: OptimConfig, total: int, folder: Path, seed: int, stop_by: str) -> dict[str, Any]:
    """Arguments common to transformers' and TRL's trainers."""
    every = min(optim.eval_steps, total)
    return {
        "output_dir": str(folder / "trainer"),
        "num_train_epochs": optim.epochs,
        "per_device_train_batch_size": optim.micro_batch_size,
        "per_device_eval_batch_size": optim.micro_batch_size,
        "gradient_accumulation_steps": optim.batch_size // optim.micro_batch_size,
        "activation_checkpointing": False,  # enabled with the model
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
        "disable_tqdm": True,
        "seed": seed,
        "use_cpu": not torch.accelerator.is_available(),
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "bf16": False,  # frozen weights have their own dtype; trained weights are float32
    }


def _callbacks(optim: OptimConfig, folder: Path) -> list[TrainerCallback]:
    """Early stopping, and TensorBoard logs on the main process."""
    stop = EarlyStoppingCallback(early_stopping_patience=optim.early_stopping_patience)
    return [
        stop,
        *([TensorBoardCallback(SummaryWriter(str(folder / "logs")))] if processes().is_main_process else []),
    ]


def _optimizers(model: RewardModel | Policy, config: RunConfig, total: int) -> tuple[Optimizer, LambdaLR]:
    """The model's optimiser and its learning rate schedule over `total` steps."""
    groups = parameter_groups(model, config.optim, config.train == "full")
    optimizer = RowAdamW(groups, betas=(0.9, 0.98))
    return optimizer, LambdaLR(optimizer, lambda step: rate(step, total, config.optim))


def padded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with a padding token, which trainers ask for. Any token will do: padding is masked."""
    copied = copy.deepcopy(tokenizer)
    if copied.pad_token is None:
        copied.pad_token = copied.eos_token or copied.convert_ids_to_tokens(0)
    return copied


@contextmanager
def special_tokens_kept(config: PretrainedConfig) -> Iterator[None]:
    """Restore the config's special tokens after the block.

    Trainers copy the tokenizer's special tokens into the config, and a reward model without a padding token would then
    read texts differently.
    """
    configs = {id(each): each for each in (config, config.get_text_config())}.values()
    before = [(each, name, getattr(each, name)) for each in configs for name in _IDS if hasattr(each, name)]
    try:
        yield
    finally:
        for each, name, value in before:
            setattr(each, name, value)


def run_trainer(trainer: Trainer) -> dict[str, Any]:
    """Train, from the last checkpoint if there is one; the model ends at the best validation metric.

    Sharded weights are gathered in the end, where they are saved.
    """
    folder = Path(cast(str, trainer.args.output_dir))
    checkpoint = last_intact(folder, best_of)
    if checkpoint is not None:
        logger.info("resuming the run from %s", checkpoint)
    # an ended run is not resumed: transformers would take one more step
    if checkpoint is not None and best_of(checkpoint) is not None and _had_ended(checkpoint):
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        trainer._load_best_model()
        seconds = 0.0
    else:
        with training_bar(trainer), warnings.catch_warnings():
            # rewards are views of the head's output, which nothing changes in place
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = output.metrics["train_runtime"]
    gather_weights(cast(nn.Module, trainer.model), here=processes().is_main_process)
    stopped_by = cast(str, trainer.args.metric_for_best_model)
    return {
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "seconds": seconds,  # since the last resume, evaluations (`eval_runtime`) included
        f"validation_{stopped_by}": trainer.state.best_metric,
        "history": [entry for entry in trainer.state.log_history if f"eval_{stopped_by}" in entry],
    }


def best_of(checkpoint: Path) -> Path | None:
    """The checkpoint with the best validation metric so far, with which the run ends."""
    best = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
    return None if best is None else Path(best)


def _had_ended(checkpoint: Path) -> bool:
    """Whether the checkpoint is that of a run without further steps, complete or stopped early."""
    callbacks = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).stateful_callbacks
    return bool(callbacks["TrainerControl"]["args"]["should_training_stop"])
