"""What the setting `trainer` may hold: arguments of `TrainingArguments` that no setting of ours decides.

Names that are refused are known without torch; `refuse_unknown` asks transformers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

from prm.checks import checked, require
from prm.config import RunConfig, TrainConfig, TrainerArguments
from prm.errors import PrmError, hint

UPLOAD = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")

_EVALUATION = "optim.eval_steps' and 'optim.early_stopping_patience"
_RATES = "optim.user_lr', 'optim.head_lr', 'optim.lora_lr' or 'optim.backbone_lr"
# arguments that a setting of ours decides, and its name
OUR_SETTING: Mapping[str, str] = {
    "output_dir": "output_dir",
    "seed": "seed",
    "data_seed": "seed",
    "num_train_epochs": "optim.epochs",
    "max_steps": "optim.epochs",
    "per_device_train_batch_size": "optim.micro_batch_size",
    "per_device_eval_batch_size": "optim.micro_batch_size",
    "auto_find_batch_size": "optim.micro_batch_size",
    "gradient_accumulation_steps": "optim.batch_size",
    "learning_rate": _RATES,
    "lr_scheduler_type": "optim.lr_scheduler_type",
    "lr_scheduler_kwargs": "optim.lr_scheduler_type",
    "warmup_steps": "optim.warmup_steps",
    "max_grad_norm": "optim.max_grad_norm",
    "eval_strategy": _EVALUATION,
    "eval_steps": _EVALUATION,
    "eval_delay": _EVALUATION,
    "eval_on_start": _EVALUATION,
    "save_strategy": _EVALUATION,
    "save_steps": _EVALUATION,
    "save_total_limit": _EVALUATION,
    "save_only_model": _EVALUATION,
    "load_best_model_at_end": _EVALUATION,
    "metric_for_best_model": _EVALUATION,
    "greater_is_better": _EVALUATION,
    "restore_callback_states_from_checkpoint": _EVALUATION,
    "bf16": "backbone.dtype",
    "fp16": "backbone.dtype",
    "bf16_full_eval": "backbone.dtype",
    "fp16_full_eval": "backbone.dtype",
    "gradient_checkpointing": "optim.gradient_checkpointing",
    "gradient_checkpointing_kwargs": "optim.gradient_checkpointing",
    "activation_checkpointing": "optim.gradient_checkpointing",
    "activation_checkpointing_kwargs": "optim.gradient_checkpointing",
}

_OPTIMISER = "training has an optimiser of its own, AdamW that leaves absent users' rows alone, without weight decay"
_METRICS = "the validation metrics need it as it is"
_ORDER = "each pair counts by its weight, in a seeded order"
_SHARDED = "a run is saved from complete weights on each process"
_WHOLE = "the finished run is uploaded once"
# arguments that would have no effect here, or a wrong one, and why
UNSUPPORTED: Mapping[str, str] = {
    "optim": _OPTIMISER,
    "optim_args": _OPTIMISER,
    "optim_target_modules": _OPTIMISER,
    "weight_decay": _OPTIMISER,
    "adam_beta1": _OPTIMISER,
    "adam_beta2": _OPTIMISER,
    "adam_epsilon": _OPTIMISER,
    "label_smoothing_factor": "soft labels are the column 'p_chosen'",
    "label_names": _METRICS,
    "prediction_loss_only": _METRICS,
    "include_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "eval_do_concat_batches": _METRICS,
    "eval_use_gather_object": _METRICS,
    "remove_unused_columns": "the columns of users and weights are needed",
    "train_sampling_strategy": _ORDER,
    "length_column_name": _ORDER,
    "dataloader_drop_last": _ORDER,
    "ignore_data_skip": _ORDER,
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "deepspeed": _SHARDED,
    "parallelism_config": _SHARDED,
    "use_liger_kernel": "users are embedded by a module of ours that these kernels do not know",
    "liger_kernel_config": "users are embedded by a module of ours that these kernels do not know",
    "neftune_noise_alpha": "users are embedded by a module of ours that this noise does not know",
    "hub_token": "it would be written to run.json: log in with 'hf auth login', or set HF_TOKEN",
    "hub_strategy": _WHOLE,
    "hub_always_push": _WHOLE,
}
_ONLY_HERE: Mapping[str, str] = {
    "resume_from_checkpoint": "the same command resumes a run",
    "enable_jit_checkpoint": "the same command resumes a run",
    "save_on_each_node": "a run is written once",
    "disable_tqdm": "training shows one bar of its own",
    "do_train": "the command says what it does",
    "do_eval": "the command says what it does",
    "do_predict": "the command says what it does",
    "use_cpu": "the accelerator is used if there is one: hide it with CUDA_VISIBLE_DEVICES=''",
    "callbacks": "they are Python objects, and no file names code to run: give them to prm.train or policy.train_dpo",
}


def refuse_trainer(config: RunConfig) -> None:
    """Raise `PrmError` for a key of `trainer` that is not for a run's settings, and for a run that has no trainer.

    Does not find unknown names: see `refuse_unknown`.
    """
    if isinstance(config, TrainConfig):
        require(
            not (config.trainer and config.fast_path),
            "trainer",
            "is for training by gradient steps, and linear heads on a frozen backbone are fitted without any: leave it "
            "out (Scorer.push_to_hub uploads a finished run), or set 'train: lora' or 'reward.form: soft_prompt'",
        )
    for name in config.trainer:
        if name in OUR_SETTING:
            raise PrmError(f"config key 'trainer.{name}' is decided by a setting of its own: set '{OUR_SETTING[name]}'")
        if why := (UNSUPPORTED.get(name) or _ONLY_HERE.get(name)):
            raise PrmError(f"config key 'trainer.{name}' must be left out: {why}")
    upload_of(config)


@dataclass(frozen=True)
class Upload:
    """Where a finished run is uploaded.

    Args:
        repo_id: "owner/name", or a name in the user's own namespace.
        private: whether a new repository is private.
    """

    repo_id: str
    private: bool
    revision: str | None


def upload_of(config: RunConfig) -> Upload | None:
    """Where the run is uploaded; `None` if it is not. Raises `PrmError` for a value of the wrong type."""
    given, name = config.trainer, Path(config.output_dir).name
    wanted = checked("trainer.push_to_hub", bool, given.get("push_to_hub", False))
    repo_id = checked("trainer.hub_model_id", str | None, given.get("hub_model_id")) or name
    private = checked("trainer.hub_private_repo", bool | None, given.get("hub_private_repo"))
    revision = checked("trainer.hub_revision", str | None, given.get("hub_revision"))
    upload = Upload(str(repo_id), private is not False, None if revision is None else str(revision))
    return upload if wanted else None


def refuse_unknown(trainer: TrainerArguments) -> None:
    """Raise `PrmError` for a name that `TrainingArguments` does not have, a wrong value, and a missing tracker."""
    if not trainer:
        return
    from transformers import TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    known = [field.name for field in fields(TrainingArguments) if field.init]
    for name in trainer:
        if name not in known:
            raise PrmError(
                f"config key 'trainer.{name}' is no argument of transformers' TrainingArguments"
                f"{hint(name, known, 'arguments')}"
            )
    build = cast(Callable[..., TrainingArguments], TrainingArguments)
    try:
        arguments = build(**{"report_to": "none"} | passed_on(trainer))
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    except Exception as error:  # whatever a value or a tracker's package raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise PrmError(f"config key 'trainer': {reason}") from None


def passed_on(trainer: TrainerArguments) -> dict[str, object]:
    """The arguments for `TrainingArguments`: without those of the upload, which follows when the run is finished.

    Every run writes TensorBoard's logs to its folder, so `tensorboard` among the trackers adds nothing.
    """
    passed: dict[str, object] = {name: value for name, value in trainer.items() if name not in UPLOAD}
    trackers = passed.get("report_to")
    if trackers is not None:
        given = checked("trainer.report_to", str | list[str], trackers)
        named = given if isinstance(given, list) else [given]
        passed["report_to"] = [name for name in named if name != "tensorboard"] or "none"
    return passed


def refuse_callbacks(callbacks: Sequence[object], fast_path: bool = False) -> None:
    """Raise `PrmError` for what is no callback of transformers, and for any on the path that has no trainer."""
    if not callbacks:
        return
    from transformers import TrainerCallback

    require(not fast_path, "trainer.callbacks", "are for training by gradient steps: set 'train' or 'reward.form'")
    for callback in callbacks:
        kind = callback if isinstance(callback, type) else type(callback)
        require(
            issubclass(kind, TrainerCallback),
            "trainer.callbacks",
            f"must be transformers' TrainerCallbacks, got {kind.__name__}",
        )
