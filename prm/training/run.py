"""A training run: from a feedback log to a run folder (`prm train`)."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prm.checkpoint import checkpoint as checkpoints
from prm.config import DataConfig, RunConfig, TrainConfig
from prm.data.baselines import length_signs
from prm.data.comparison import Comparison, extent, fingerprint
from prm.data.profile.artifacts import artefacts_of
from prm.data.sources import Feedback, read_feedback
from prm.data.sources.fields import columns_named
from prm.data.splits import (
    UNSEEN,
    marked,
    never_trained_on,
    shared_conversations,
    shared_prompts,
    split,
    split_given,
    subsample_users,
    training_holdout,
)
from prm.errors import DataError, PrmError
from prm.io.disk import remove
from prm.io.folders import recover
from prm.io.run_files import read_length_signs, read_run
from prm.io.tables import write_json, write_jsonl
from prm.models.backbones import processes
from prm.training.gradient_training import train_steps
from prm.training.linear_heads import continue_head, train_head
from prm.training.setup import with_settings_of_run
from prm.training.unreadable_rows import UseOfText, encoder_of_config, encoder_of_run, readable
from prm.training.work_folder import NOTE, STATES, alone_in, finish, first_day, is_finished, open_work_folder

logger = logging.getLogger(__name__)

_FEW_TO_STOP_BY = 20
_MAX_DECIDED = 0.5  # share of the training pairs whose label formatting alone may predict


@dataclass(frozen=True)
class Parts:
    """The log, split. Parts share nothing by `data.holdout_by`, except with `given`.

    Args:
        account: counts of the log's rows by use, and of comparisons that are in no part.
        skipped: bad rows, in the format of `skipped.jsonl`.
    """

    train: list[Comparison]
    validation: list[Comparison]
    test: list[Comparison]
    account: dict[str, Any] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def summary(self, path: str) -> dict[str, Any]:
        """The section `data` of `run.json`."""
        comparisons = [*self.train, *self.validation, *self.test]
        return {
            "path": path,
            "fingerprint": fingerprint(comparisons),
            "train_comparisons": len(self.train),
            "validation_comparisons": len(self.validation),
            "test_comparisons": len(self.test),
            "learnt_from": extent(self.train)._asdict(),
            "has_user_text": any(c.user_text for c in comparisons),
            **self.account,
        }


Fit = Callable[[Parts, Path, dict[str, Any]], dict[str, Any]]


def train(config: TrainConfig) -> Path:
    """Train a reward model by the config; returns the run folder, which appears when it is complete.

    The same call resumes a killed run. Raises `PrmError` for invalid settings or data, and if the folder exists and
    `overwrite` is false.
    """
    if config.start_from:
        recover(Path(config.start_from))
        config = with_settings_of_run(config)
    divide = partial(split_parts, config, partial(_readable, config))
    return make_run(config, checkpoints.REWARD_MODEL, divide, partial(_fit, config))


def _readable(config: TrainConfig, feedback: Feedback) -> Feedback:
    if config.start_from:
        encoder = encoder_of_run(Path(config.start_from))
    else:
        encoder = encoder_of_config(config.backbone, config.users, config.reward)
    texts: UseOfText = "prior" if config.users.kind == "bayes" else "prompt"
    return readable(feedback, encoder, config.data.on_bad_row == "skip", texts=texts)


def make_run(config: RunConfig, kind: str, divide: Callable[[], Parts], fit: Fit) -> Path:
    """Make the run folder of any kind of training run: split the log, fit the model, publish the folder atomically.

    Args:
        kind: of the model, as in `config.json`.
        divide: reads and splits the log.
        fit: trains on the parts, saves the model into a work folder and returns metrics.

    Raises as `train` does, and if another command uses the folder.
    """
    config.check()
    with alone_in(Path(config.output_dir)):
        return _make_run(config, kind, divide, fit)


def _make_run(config: RunConfig, kind: str, divide: Callable[[], Parts], fit: Fit) -> Path:
    target = Path(config.output_dir)
    if target.exists() and not config.overwrite and not (target / NOTE).is_file():
        raise _exists_error(target)
    parts = divide()
    look_for_artefacts([*parts.train, *parts.validation], config.data)
    for name, part in {"training": parts.train, "validation": parts.validation, "held out": parts.test}.items():
        if part and processes().is_main_process:
            logger.info("%s: %s", name, extent(part))
    data = parts.summary(config.data.path)
    if is_finished(target, config, data["fingerprint"]):
        processes().wait_for_everyone()  # every process checks before the note is removed
        if processes().is_main_process:
            finish(target)
        return target
    if target.exists() and not config.overwrite:
        raise _exists_error(target)
    work = open_work_folder(target, config, data["fingerprint"])
    torch.manual_seed(config.seed)
    run = {"kind": kind, "config": config.to_dict(), "seed": config.seed, "day": first_day(work), "data": data}
    started = time.perf_counter()
    try:
        metrics = fit(parts, work, run)
    except PrmError:
        if not (work / STATES).exists():  # nothing to resume: do not block the corrected command
            with suppress(PrmError):
                remove(work)
        raise
    state = processes()
    if state.is_main_process:
        if parts.test:
            write_jsonl(work / "test.jsonl", parts.test)
        if parts.skipped:
            write_jsonl(work / "skipped.jsonl", parts.skipped)
        write_json(work / "metrics.json", {"seconds": time.perf_counter() - started} | metrics)
        earlier = read_length_signs(Path(config.start_from)) if config.start_from else None
        signs = length_signs([*parts.train, *parts.validation], earlier or {})
        write_json(work / "controls.json", {"length_sign": signs})
        finish(target)
    state.wait_for_everyone()
    return target


def _exists_error(target: Path) -> PrmError:
    return PrmError(
        f"{target} exists already: set another output_dir, or overwrite: true (--overwrite true) to replace it"
    )


def _fit(config: TrainConfig, parts: Parts, work: Path, run: dict[str, Any]) -> dict[str, Any]:
    if not config.fast_path:
        return train_steps(config, parts.train, parts.validation, work, run)
    if not processes().is_main_process:  # linear heads take minutes and run on one process only
        return {}
    return (continue_head if config.start_from else train_head)(config, parts.train, work, run)


def split_parts(config: RunConfig, read: Callable[[Feedback], Feedback] | None = None) -> Parts:
    """Read the log, hold out the test part, apply `min_comparisons`, and hold out the validation part.

    Linear heads on a frozen backbone have no validation part: they use cross-validation.

    Args:
        read: leaves out comparisons that the model cannot read.
    """
    data = config.data
    earlier = read_run(Path(config.start_from), "config.data")["config"]["data"] if config.start_from else {}
    feedback = read_feedback(data, columns_named(earlier))
    if read is not None:
        feedback = read(feedback)
    for line in feedback.account() if processes().is_main_process else []:
        logger.info("%s", line)
    left_out: dict[str, int] = {}
    rest, test = feedback.comparisons, list[Comparison]()
    if data.holdout_by == "given":
        with _naming_key("data.holdout_by"):
            rest, test = split_given(rest)
        _warn_of_shared_prompts(rest, test)
    elif data.test_fraction > 0.0 or data.test_from is not None:
        with _naming_key("data.test_from" if data.test_from is not None else "data.test_fraction"):
            rest, test = split(rest, data.holdout_by, data.test_fraction, config.seed, data.test_from)
        left_out["between training and held-out answers"] = len(feedback.comparisons) - len(rest) - len(test)
    if never := sum(map(never_trained_on, rest)):
        left_out["marked as never to be learnt from"] = never
        rest = [c for c in rest if not never_trained_on(c)]
    if data.judges_per_pair:
        subsample = subsample_users(rest, data.judges_per_pair, config.seed)
        left_out[f"more than {data.judges_per_pair} people's judgement of a pair"] = len(rest) - len(subsample)
        rest = subsample
    if data.min_comparisons:
        # held-out users have no training comparisons: count their test comparisons instead
        of_held_out_users = [c for c in test if data.holdout_by == "user" or marked(c) == UNSEEN]
        counts = Counter(c.user_id for c in [*rest, *of_held_out_users] if not c.is_tie)
        kept = [[c for c in part if counts[c.user_id] >= data.min_comparisons] for part in (rest, test)]
        few_key = f"by people with fewer than {data.min_comparisons} to learn from"
        left_out[few_key] = len(rest) + len(test) - sum(map(len, kept))
        users = {c.user_id for c in [*rest, *test]}
        left_out["people left out so"] = len(users - {c.user_id for part in kept for c in part})
        if test and not kept[1]:
            raise PrmError(
                f"config key 'data.min_comparisons': no held-out user has {data.min_comparisons} comparisons: lower it"
            )
        rest, test = kept
    if not rest:
        raise PrmError(f"{data.path}: nothing is left to train on: {left_out}")
    validation: list[Comparison] = []
    if not config.fast_path:
        with _naming_key("data.validation_fraction"):
            by = training_holdout(data.holdout_by, rest)
            train, validation = split(rest, by, data.validation_fraction, config.seed + 1)
        left_out["between training and validation answers"] = len(rest) - len(train) - len(validation)
        rest = train
        if len(validation) < _FEW_TO_STOP_BY:
            logger.warning("early stopping uses only %d validation comparisons", len(validation))
    return Parts(
        rest,
        validation,
        test,
        feedback.summary() | {"left_out": {k: n for k, n in left_out.items() if n}},
        feedback.skipped,
    )


def _warn_of_shared_prompts(train: list[Comparison], test: list[Comparison]) -> None:
    shared, total = shared_prompts(train, test)
    overlapping = shared_conversations(train, test)
    if shared and processes().is_main_process:
        logger.warning("%d of the %d prompts of the given held-out part are also in training", shared, total)
    if overlapping and processes().is_main_process:
        overlap = "are the beginning of a training prompt, or begin with one"
        logger.warning("%d of the %d prompts of the given held-out part %s", overlapping, total, overlap)


def look_for_artefacts(comparisons: list[Comparison], data: DataConfig) -> None:
    """Warn of formatting that predicts the label whatever the content: an artefact of how the log was made.

    Raises `DataError` if it predicts half of the pairs, unless `data.on_artefact` is `warn`: a model would learn it
    before any user's taste.
    """
    artefacts = artefacts_of(comparisons)
    if not artefacts.flagged:
        return
    formats = "; ".join(f.words for f in artefacts.flagged)
    finding = f"formatting alone predicts the label of {100 * artefacts.decided:.1f}% of the training pairs: {formats}"
    if artefacts.decided >= _MAX_DECIDED and data.on_artefact == "stop":
        raise DataError(
            f"{data.path}: {finding}. Put chosen and rejected responses into one format, or set "
            "'data.on_artefact: warn' if users do prefer this formatting"
        )
    if processes().is_main_process:
        logger.warning("%s", finding)


@contextmanager
def _naming_key(key: str) -> Iterator[None]:
    """Add the config key to change to a `PrmError` raised inside."""
    try:
        yield
    except PrmError as error:
        raise PrmError(f"config key '{key}': {error}") from None
