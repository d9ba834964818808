"""A training run: from a feedback log to a run folder (`prm train`)."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from transformers import TrainerCallback

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.hub import upload_run
from prm.config import RunConfig, TrainConfig, UseOfText
from prm.data.baselines import length_votes
from prm.data.profile.verdict import amount
from prm.data.sources import Feedback
from prm.errors import PrmError
from prm.features.hidden_states import Workers
from prm.io.folders import discard_work, recover
from prm.io.interrupts import resumable
from prm.io.log_lines import log_shown
from prm.io.run_files import Metrics, RunRecord, read_controls
from prm.io.tables import write_json, write_jsonl
from prm.models.backbones import processes
from prm.training.early_checks import is_begun, refuse_finished, refuse_workers
from prm.training.gradient_training import train_steps
from prm.training.linear_heads import continue_head, train_head
from prm.training.prepare_log import DataSplit, Log, log_parts, refuse_artefacts, refuse_ties, split_data, warn_of_leaks
from prm.training.setup import with_settings_of_run
from prm.training.trainers.sharding import refuse_launch
from prm.training.trainers.trainer_setting import refuse_callbacks, refuse_trainer, refuse_unknown, upload_of
from prm.training.unreadable_rows import encoder_of_config, encoder_of_run, readable
from prm.training.work_folder import STATES, alone_in, finish, first_day, is_finished, open_work_folder

logger = logging.getLogger(__name__)

Fit = Callable[[DataSplit, Path, RunRecord], Metrics]


@log_shown()
def train(
    config: TrainConfig,
    log: Log | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    workers: Workers | None = None,
) -> Path:
    """Train a reward model by the config; returns the run folder, which appears when it is complete.

    The same call resumes a killed run.

    Args:
        log: rows in memory, or feedback that was read already, instead of the file `data.path`.
        callbacks: of transformers, for training by gradient steps.
        workers: who reads texts for linear heads on a frozen backbone, if not this process.

    Raises `PrmError` for invalid settings or data, and if the folder exists and
    `overwrite` is false.
    """
    if config.start_from:
        recover(Path(config.start_from))
        config = with_settings_of_run(config)
    refuse_callbacks(callbacks, config.fast_path)
    if workers is not None:
        refuse_workers(config)
    divide = partial(split_data, config, partial(_readable, config), log)
    fit = partial(_fit, config, callbacks, workers)
    return make_run(config, checkpoints.REWARD_MODEL, divide, fit, shards=not config.fast_path)


def _readable(config: TrainConfig, feedback: Feedback) -> Feedback:
    texts: UseOfText
    if config.start_from:
        earlier = Path(config.start_from)
        encoder, texts = encoder_of_run(earlier), checkpoints.read_config(earlier).settings.user_text
    else:
        encoder = encoder_of_config(config.backbone, config.users, config.reward)
        texts = "unread" if config.users.text_dropout == 1.0 else "prompt"
    return readable(feedback, encoder, config.data.on_bad_row == "skip", texts=texts)


@log_shown()
def make_run(config: RunConfig, kind: str, divide: Callable[[], DataSplit], fit: Fit, shards: bool = False) -> Path:
    """Make the run folder of any kind of training run: split the log, fit the model, publish the folder atomically.

    It is uploaded afterwards if the settings say so.

    Args:
        kind: of the model, as in `config.json`.
        divide: reads and splits the log.
        fit: trains on the parts, saves the model into a work folder and returns metrics.
        shards: whether weights can be sharded over the processes.

    Raises as `train` does, and if another command uses the folder. The `KeyboardInterrupt` of Ctrl-C says what is kept.
    """
    config.check()
    refuse_trainer(config)
    refuse_unknown(config.trainer)
    refuse_launch("this run", shards)
    with alone_in(Path(config.output_dir)), resumable(partial(is_begun, config)):
        folder = _make_run(config, kind, divide, fit)
    if (upload := upload_of(config)) and processes().is_main_process:
        try:
            upload_run(folder, upload.repo_id, private=upload.private, revision=upload.revision)
        except PrmError as error:
            raise PrmError(f"{folder} is finished, but {error}") from None
    return folder


def _make_run(config: RunConfig, kind: str, divide: Callable[[], DataSplit], fit: Fit) -> Path:
    target = Path(config.output_dir)
    refuse_finished(config)
    parts = divide()
    refuse_artefacts([*parts.train, *parts.validation], config.data)
    warn_of_leaks(config, parts.test)
    log_parts(parts)
    data = parts.summary(config.data.path)
    if is_finished(target, config, data["fingerprint"]):
        processes().wait_for_everyone()  # every process checks before the note is removed
        if processes().is_main_process:
            finish(target)
        return target
    refuse_finished(config, unless_killed=False)
    work = open_work_folder(target, config, data["fingerprint"])
    torch.manual_seed(config.seed)
    run: RunRecord = {
        "kind": kind,
        "config": config.to_dict(),
        "seed": config.seed,
        "day": first_day(work),
        "data": data,
    }
    started = time.perf_counter()
    try:
        metrics = fit(parts, work, run)
    except PrmError:
        if not (work / STATES).exists():  # nothing to resume: do not block the corrected command
            with suppress(PrmError):
                discard_work(work)
        raise
    state = processes()
    if state.is_main_process:
        if parts.test:
            write_jsonl(work / "test.jsonl", parts.test)
        if parts.skipped:
            write_jsonl(work / "skipped.jsonl", parts.skipped)
        write_json(work / "metrics.json", {"seconds": time.perf_counter() - started, **metrics})
        earlier = read_controls(Path(config.start_from)) if config.start_from else None
        write_json(work / "controls.json", length_votes([*parts.train, *parts.validation], earlier))
        checkpoints.refresh_card(work)  # with the metrics
        finish(target)
    state.wait_for_everyone()
    return target


def _fit(
    config: TrainConfig,
    callbacks: Sequence[TrainerCallback],
    workers: Workers | None,
    parts: DataSplit,
    work: Path,
    run: RunRecord,
) -> Metrics:
    refuse_ties(parts.train, config.data)
    if config.users.kind != "uniform" and not config.start_from and processes().is_main_process:
        logger.info("%s", amount(parts.train))
    if not config.fast_path:
        return train_steps(config, parts.train, parts.validation, work, run, callbacks)
    if not processes().is_main_process:  # linear heads take minutes and run on one process only
        return {}
    return (continue_head if config.start_from else train_head)(config, parts.train, work, run, workers)
