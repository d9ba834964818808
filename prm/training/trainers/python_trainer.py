"""What a trainer has that is used from Python, beside what a command's has: TRL's data sets, `save_model`, uploads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from peft import PeftConfig
from safetensors.torch import load_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import DataCollator, EvalPrediction, PreTrainedTokenizerBase, SchedulerType, Trainer, TrainerCallback
from transformers.trainer_utils import PredictionOutput, TrainOutput

from prm.checkpoint.checkpoint import Checkpoint, as_read
from prm.checkpoint.hub_model import HubModel, in_brief
from prm.checkpoint.saved_copy import save_copy
from prm.checks import built
from prm.config import FeedbackConfig, RunConfig, UserConfig
from prm.data.baselines import length_votes
from prm.data.chat_template import today
from prm.data.comparison import Comparison
from prm.errors import CheckpointError, PrmError
from prm.io.log_lines import log_shown
from prm.io.progress import without_bars
from prm.io.run_files import RunFiles, RunRecord
from prm.models.backbones import template_fingerprint, tokenizer_fingerprint
from prm.models.saved_adapters import refuse_unlike
from prm.training.encoded_pairs import is_encoded
from prm.training.prepare_log import DataSplit, log_account, log_parts, refuse_artefacts, refuse_ties
from prm.training.setup import set_generic_row
from prm.training.trainers.arguments import PersonalizedArguments
from prm.training.trainers.optimizer import RowAdamW, parameter_groups, rate
from prm.training.trainers.resume import interrupted, is_intact, last_intact
from prm.training.trainers.sharding import refuse_launch
from prm.training.trainers.step_trainer import WEIGHTS, StepTrainer, best_of, padded, special_tokens_kept
from prm.training.trainers.train_datasets import TrainerData, read_dataset

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


class PythonTrainer(StepTrainer):
    """Mix-in before one of TRL's trainers of pairs, for use from Python and by commands.

    A command makes the model, encodes the data and saves the run itself: then `config` is `None`. Otherwise the trainer
    does, and `config` holds its arguments as the settings of the run that `save_model` writes.
    """

    personalized: HubModel[Any]
    config: RunConfig | None = None
    parts: DataSplit
    alpha: float
    rows_only: bool = False

    def __init__(
        self,
        model: HubModel[Any] | str | Path,
        args: PersonalizedArguments,
        data_collator: DataCollator,
        train_dataset: object,
        eval_dataset: object,
        processing_class: PreTrainedTokenizerBase | None,
        compute_metrics: ComputeMetrics,
        callbacks: list[TrainerCallback] | None,
        optimizers: tuple[Optimizer | None, LRScheduler | None],
        peft_config: PeftConfig | None,
    ):
        if isinstance(model, HubModel) and is_encoded(train_dataset):  # by a command
            self.personalized = model
        else:
            with called_from_python(args):
                refuse_launch("a trainer that is made in Python", shards=False)
                train_dataset, eval_dataset = self._start(model, args, train_dataset, eval_dataset, peft_config)
        checkpoint = self.personalized.checkpoint
        refuse_other_tokenizer(checkpoint, processing_class)
        if args.learning_rate is None:  # trackers show it
            optim = args.optim_config()
            args.learning_rate = optim.backbone_lr if checkpoint.tuned else optim.lora_lr
        args.activation_checkpointing = args.gradient_checkpointing = False  # enabled with the model
        args._n_gpu = min(1, args.n_gpu)  # a single process must not spread the model over several GPUs
        with special_tokens_kept(checkpoint.model.config):
            super().__init__(
                model=checkpoint.model,
                args=args,
                data_collator=data_collator,
                train_dataset=cast(Dataset, train_dataset),
                eval_dataset=cast(Dataset | None, eval_dataset),
                processing_class=padded(checkpoint.tokenizer),
                compute_metrics=compute_metrics,
                callbacks=callbacks,
                optimizers=cast(tuple[Optimizer | None, LambdaLR | None], optimizers),
            )

    def __repr__(self) -> str:
        folder = str(self.args.output_dir)
        return f"{type(self).__name__}({in_brief(self.personalized.checkpoint)}, output_dir={folder!r})"

    def _start(
        self,
        model: HubModel[Any] | str | Path,
        args: PersonalizedArguments,
        train_dataset: object,
        eval_dataset: object,
        peft_config: PeftConfig | None,
    ) -> tuple[Dataset, object]:
        """Make the model and encode the data sets; what became of their rows is logged."""
        refuse_other_model(model)
        known = model.checkpoint.settings.users if isinstance(model, HubModel) else args.users
        self._read = partial(
            read_dataset, data=built(FeedbackConfig, args.data, "data"), users=built(UserConfig, known, "users")
        )
        train = self._read_logged(train_dataset, "train_dataset")
        self.config, encoded = self.prepared(model, train, peft_config)
        several = isinstance(eval_dataset, Mapping)
        named = eval_dataset if isinstance(eval_dataset, Mapping) else {"": eval_dataset}
        given = {name: part for name, part in named.items() if part is not None}
        read = {name: self._read_logged(part, "eval_dataset").comparisons for name, part in given.items()}
        held_out = [c for part in read.values() for c in part]
        chooses = args.metric_for_best_model is not None  # set for the best model, early stopping and plateaus
        validation, test = (held_out, []) if chooses else ([], held_out)
        self.parts = DataSplit(train.comparisons, validation, test, train.account)
        log_parts(self.parts)
        refuse_ties(train.comparisons, self.config.data)
        refuse_artefacts(train.comparisons, self.config.data)  # a warning: `data.on_artefact` says so
        evaluated = {name: self.encode(part) for name, part in read.items()}
        return encoded, evaluated if several else evaluated.get("")

    def _read_logged(self, dataset: object, name: str) -> TrainerData:
        read = self._read(dataset, argument=name)
        log_account(read.feedback)
        return read

    def prepared(
        self, model: HubModel[Any] | str | Path, train: TrainerData, peft_config: PeftConfig | None
    ) -> tuple[RunConfig, Dataset]:
        """(the arguments as settings of a run, the encoded training data); sets `personalized`."""
        raise NotImplementedError

    def encode(self, comparisons: Sequence[Comparison]) -> Dataset:
        """Comparisons for validation, encoded for the model. Raises `DataError` for a response that does not fit."""
        raise NotImplementedError

    def _encoded(self, dataset: object) -> object:
        """A data set for validation, several by name, or none, encoded."""
        if isinstance(dataset, Mapping):
            return {name: self._encoded(part) for name, part in dataset.items()}
        if dataset is None or is_encoded(dataset):
            return dataset
        return self.encode(self._read_logged(dataset, "eval_dataset").comparisons)

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # encoded before

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of `eval_dataset`, or of that of the trainer; its rows have the forms of the training data."""
        with called_from_python(self._arguments):
            given = eval_dataset if isinstance(eval_dataset, str) else self._encoded(eval_dataset)
        # TRL's own method would prepare the data once more, and P-DPO's would ask for a reference model
        return Trainer.evaluate(self, cast(Dataset | None, given), ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: object, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Predictions, as `compute_metrics` sees them, and metrics of a data set in a form of the training data."""
        with called_from_python(self._arguments):
            encoded = self._encoded(test_dataset)
        return super().predict(cast(Dataset, encoded), ignore_keys, metric_key_prefix)

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """Train, as transformers' `Trainer` does; with `True`, resume from the newest checkpoint that is whole.

        Raises `PrmError` if there is no checkpoint, or if it is damaged or of another model. The `KeyboardInterrupt` of
        Ctrl-C says from which checkpoint to resume.
        """
        core = self.personalized.model
        if self.config is not None:
            self.personalized.checkpoint.users.record(self.parts.validation)
        shown = nullcontext() if self.config is None else called_from_python(self._arguments)  # commands show it
        with shown, special_tokens_kept(core.config):
            self.last_checkpoint = checkpoint = self._checkpoint(resume_from_checkpoint)
            try:
                output = super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)
            except KeyboardInterrupt:
                if self.config is None:  # a command says how to resume
                    raise
                raise interrupted(self.last_checkpoint, str(self.last_checkpoint)) from None
        core.eval()
        if self.config is not None:
            if not self.rows_only:
                set_generic_row(core.user_model, self.alpha)
            self.personalized.checkpoint.record |= self._record(self.config)
        return output

    def _checkpoint(self, given: str | bool | None) -> Path | None:
        """The checkpoint to resume from."""
        if not given:
            return None
        if given is True:
            folder = Path(str(self.args.output_dir))
            if (found := last_intact(folder, best_of)) is None:
                raise PrmError(f"{folder} has no checkpoint to resume from: leave out resume_from_checkpoint")
            return found
        if self.config is not None and not is_intact(Path(given)):  # a command has looked
            raise CheckpointError(f"{given} is no whole checkpoint: resume from an earlier one")
        return Path(given)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint) / WEIGHTS
        expected = {n: p.detach() for n, p in self.personalized.model.named_parameters() if p.requires_grad}
        refuse_unlike(load_file(path), expected, path)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """`RowAdamW` with the learning rates of the arguments, unless `optimizers` were given."""
        if self.optimizer is None:
            checkpoint, optim = self.personalized.checkpoint, self._arguments.optim_config()
            groups = parameter_groups(checkpoint.model, optim, checkpoint.tuned)
            self.optimizer = RowAdamW(groups, betas=(0.9, 0.98))
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Our schedule for `warmup_stable_decay` without arguments of its own, otherwise that of transformers."""
        args = self._arguments
        ours = args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY and not args.lr_scheduler_kwargs
        if self.lr_scheduler is None and ours:
            optim = args.optim_config(num_training_steps)
            inner = optimizer or cast(Optimizer, self.optimizer)
            self.lr_scheduler = LambdaLR(inner, lambda step: rate(step, num_training_steps, optim))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Do nothing for our optimiser, which clips group by group."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        return None if isinstance(inner, RowAdamW) else super()._clip_grad_norm(model)

    @property
    def _arguments(self) -> PersonalizedArguments:
        return cast(PersonalizedArguments, self.args)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a run folder, which `Scorer.from_pretrained` and the commands load; checkpoints in it stay.

        `eval_dataset` is its held-out part, `test.jsonl`, unless `metric_for_best_model` chose a checkpoint by it.
        """
        if _internal_call or self.config is None:
            super().save_model(output_dir, _internal_call=True)
            return
        if self.args.should_save:
            checkpoint = self.personalized.checkpoint
            checkpoint.record |= self._record(self.config)
            forgotten = {c.user_id for c in self.parts.train} - set(checkpoint.users.ids)
            test = [c for c in self.parts.test if c.user_id not in forgotten]
            save_copy(checkpoint, Path(str(output_dir or self.args.output_dir)), test)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save")

    def _record(self, config: RunConfig) -> RunFiles:
        state = self.state
        history = [entry for entry in state.log_history if any(name.startswith("eval_") for name in entry)]
        metrics: dict[str, object] = {
            "steps": state.global_step,
            "best_step": state.best_global_step,
            "history": history,
        }
        return run_record(self, self.personalized.checkpoint, config, self.parts, metrics)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Nothing to do: `push_to_hub` makes the repository."""

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: object,
    ) -> str | None:
        """Upload the model as `HubModel.push_to_hub` does, to `hub_model_id` or by the name of the output folder.

        Waits until it is done, whatever `blocking` says. Returns the address of the commit; `None` on other processes
        than the first.
        """
        args = self.args
        if self.config is None or not self.is_world_process_zero():
            return None
        self.personalized.checkpoint.record |= self._record(self.config)
        visible = private if private is not None else args.hub_private_repo
        return self.personalized.push_to_hub(
            args.hub_model_id or Path(str(args.output_dir)).absolute().name,
            private=visible is not False,
            revision=revision or args.hub_revision,
            token=token or args.hub_token,
            commit_message=commit_message,
        )


@contextmanager
def called_from_python(args: PersonalizedArguments) -> Iterator[None]:
    """Show the log and bars of the block, no bars with `disable_tqdm`; a `PrmError` of it names arguments."""
    with log_shown(), without_bars(bool(args.disable_tqdm)), args.naming_arguments():
        yield


def with_callers(ours: ComputeMetrics, callers: ComputeMetrics | None) -> ComputeMetrics:
    """Our metrics and those of the caller's function; where both have a name, the value is the caller's."""
    if callers is None:
        return ours

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        further = callers(prediction)
        named = {name.removeprefix("eval_") for name in further}  # transformers puts it before a name without it
        return {name: value for name, value in ours(prediction).items() if name not in named} | further

    return metrics


def refuse_other_model(model: object) -> None:
    """Raise `TypeError` for a model that is neither one of ours nor the name of one."""
    if not isinstance(model, HubModel | str | Path):
        raise TypeError(
            f"'model' must be the hub id or folder of a model, or one of prm or policy, got {type(model).__name__}: "
            "save it with its tokenizer into a folder, and name that"
        )


def folder_for(model: object, what: str) -> str:
    """The default output folder of a trainer, as in TRL: the model's name and what is trained."""
    if isinstance(model, HubModel):
        model = model.checkpoint.settings.backbone.name
    return f"{Path(str(model)).name}-{what}"


def refuse_other_tokenizer(checkpoint: Checkpoint[Any], given: PreTrainedTokenizerBase | None) -> None:
    """Raise `PrmError` for a `processing_class` that is not the backbone's own, with which a run is loaded."""
    own = checkpoint.tokenizer
    if given is None or given is own:
        return
    given = as_read(checkpoint.settings.backbone, given)
    for what, fingerprint in (("tokenizer", tokenizer_fingerprint), ("chat template", template_fingerprint)):
        if fingerprint(given) != fingerprint(own):
            raise PrmError(
                f"'processing_class' has another {what} than {checkpoint.settings.backbone.name}, with which the run "
                "is loaded: save it into a folder with the backbone, and name that folder"
            )


def run_record(
    trainer: object, checkpoint: Checkpoint[Any], config: RunConfig, parts: DataSplit, metrics: dict[str, object]
) -> RunFiles:
    """What the JSON files of a run hold that a trainer saves, by name."""
    run: RunRecord = {
        "kind": checkpoint.kind,
        "trainer": type(trainer).__name__,
        "config": config.to_dict(),
        "seed": config.seed,
        "day": checkpoint.settings.backbone.day or today(),
        "data": parts.summary(config.data.path),
        "parameters": checkpoint.model.trained_parameters(),
    }
    controls = length_votes([*parts.train, *parts.validation])
    return {"run.json": run, "metrics.json": metrics, "controls.json": controls}
