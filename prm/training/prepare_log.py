"""A feedback log in parts: what is trained on, what stops training, what is held out, and what is left out."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prm.config import DataConfig, FeedbackConfig, RunConfig, SplitConfig
from prm.data.comparison import Comparison, extent, fingerprint, prompt_key
from prm.data.profile.artifacts import artefacts_of
from prm.data.sources import Feedback, read_feedback
from prm.data.sources.collector import SkippedRow
from prm.data.sources.fields import columns_named
from prm.data.splits import (
    UNSEEN,
    given_split,
    never_trained_on,
    shared_conversations,
    shared_prompts,
    split,
    split_given,
    subsample_users,
    training_holdout,
)
from prm.errors import DataError, PrmError, counted
from prm.io.environment import now
from prm.io.folders import is_run
from prm.io.rows import Row
from prm.io.run_files import LogRecord, read_group
from prm.models.backbones import processes

logger = logging.getLogger(__name__)

_FEW_TO_STOP_BY = 20
_MAX_DECIDED = 0.5  # share of the training pairs whose label formatting alone may predict

Log = Sequence[Row] | Feedback
Comparisons = list[Comparison]
Split = tuple[Comparisons, Comparisons, dict[str, int]]  # training, held out, how many are left out and why


@dataclass(frozen=True)
class DataSplit:
    """The log, split. DataSplit share nothing by `data.holdout_by`, except with `given`.

    Args:
        account: counts of the log's rows by use, and of comparisons that are in no part.
        skipped: bad rows, in the format of `skipped.jsonl`.
    """

    train: list[Comparison]
    validation: list[Comparison]
    test: list[Comparison]
    account: LogRecord = field(default_factory=LogRecord)
    skipped: list[SkippedRow] = field(default_factory=list)

    def summary(self, path: str) -> LogRecord:
        """The section `data` of `run.json`."""
        comparisons, size = [*self.train, *self.validation, *self.test], extent(self.train)
        return {
            "path": path,
            "fingerprint": fingerprint(comparisons),
            "train_comparisons": len(self.train),
            "validation_comparisons": len(self.validation),
            "test_comparisons": len(self.test),
            "learnt_from": {"comparisons": size.comparisons, "prompts": size.prompts, "people": size.people},
            "has_user_text": any(c.user_text for c in comparisons),
            **self.account,
        }


def split_data(
    config: SplitConfig, read: Callable[[Feedback], Feedback] | None = None, log: Log | None = None
) -> DataSplit:
    """Read the log and take the steps of `_STEPS`, then hold out the validation part.

    Linear heads on a frozen backbone have no validation part: they use cross-validation.

    Args:
        read: leaves out comparisons that the model cannot read.
        log: rows in memory, or feedback that was read already, instead of the file `data.path`.

    Raises `PrmError` naming the setting that leaves a part empty.
    """
    earlier, read_at = read_group(Path(config.start_from), "data") if config.start_from else {}, now()
    feedback = log if isinstance(log, Feedback) else read_feedback(config.data, columns_named(earlier), log)
    if read is not None:
        feedback = read(feedback)
    log_account(feedback)
    train, test, left_out = feedback.comparisons, Comparisons(), dict[str, int]()
    for step in _STEPS:
        train, test, counts = step(config, train, test)
        left_out |= counts
    if not train:
        raise PrmError(f"{config.data.path}: nothing is left to train on: {left_out}")
    validation = Comparisons()
    if not config.fast_path:
        train, validation, counts = _hold_out_validation(config, train)
        left_out |= counts
    account: LogRecord = {
        "read_at": read_at,
        **feedback.summary(),
        "left_out": {reason: n for reason, n in left_out.items() if n},
    }
    return DataSplit(train, validation, test, account, feedback.skipped)


def log_account(feedback: Feedback) -> None:
    """Log what became of the rows of a log."""
    for line in feedback.account() if processes().is_main_process else []:
        logger.info("%s", line)


def log_parts(parts: DataSplit) -> None:
    """Log how large each part is, and how many comparisons each step of the split left out."""
    if not processes().is_main_process:
        return
    for name, part in {"training": parts.train, "validation": parts.validation, "held out": parts.test}.items():
        if part:
            logger.info("%s: %s", name, extent(part))
    if left_out := parts.account.get("left_out"):
        logger.info("left out: %s", ", ".join(f"{number} {reason}" for reason, number in left_out.items()))


def _hold_out_test(config: SplitConfig, train: Comparisons, test: Comparisons) -> Split:
    data = config.data
    if data.holdout_by == "given":
        with _naming_key("data.holdout_by"):
            rest, test = split_given(train)
        _warn_of_shared_prompts(rest, test)
        return rest, test, {}
    if data.test_fraction == 0.0 and data.test_from is None:
        return train, test, {}
    with _naming_key("data.test_from" if data.test_from is not None else "data.test_fraction"):
        rest, test = split(train, data.holdout_by, data.test_fraction, config.split_seed, data.test_from)
    return rest, test, {"share a response with both training and test": len(train) - len(rest) - len(test)}


def _drop_held_out_by_source(config: SplitConfig, train: Comparisons, test: Comparisons) -> Split:
    """Rows whose metadata `split` is `test` or `unseen` are never trained on."""
    kept = [c for c in train if not never_trained_on(c)]
    return kept, test, {"held out by the source": len(train) - len(kept)}


def _subsample_pairs(config: SplitConfig, train: Comparisons, test: Comparisons) -> Split:
    most = config.data.judges_per_pair
    if not most:
        return train, test, {}
    kept = subsample_users(train, most, config.split_seed)
    return kept, test, {f"over data.judges_per_pair {most}": len(train) - len(kept)}


def _drop_small_users(config: SplitConfig, train: Comparisons, test: Comparisons) -> Split:
    data = config.data
    if not data.min_comparisons:
        return train, test, {}
    # held-out users have no training comparisons: count their test comparisons instead
    of_held_out_users = [c for c in test if data.holdout_by == "user" or given_split(c) == UNSEEN]
    counts = Counter(c.user_id for c in [*train, *of_held_out_users] if not c.is_tie)
    kept, kept_test = ([c for c in part if counts[c.user_id] >= data.min_comparisons] for part in (train, test))
    if test and not kept_test:
        raise PrmError(
            f"config key 'data.min_comparisons': no held-out user has {data.min_comparisons} comparisons: lower it"
        )
    users, kept_users = ({c.user_id for c in part} for part in ([*train, *test], [*kept, *kept_test]))
    few = f"of users below data.min_comparisons {data.min_comparisons}"
    dropped = len(train) + len(test) - len(kept) - len(kept_test)
    return kept, kept_test, {few: dropped, "users below data.min_comparisons": len(users - kept_users)}


_STEPS: tuple[Callable[[SplitConfig, Comparisons, Comparisons], Split], ...] = (
    _hold_out_test,
    _drop_held_out_by_source,
    _subsample_pairs,
    _drop_small_users,
)


def _hold_out_validation(config: SplitConfig, train: Comparisons) -> Split:
    data = config.data
    with _naming_key("data.validation_fraction"):
        by = training_holdout(data.holdout_by, train)
        rest, validation = split(train, by, data.validation_fraction, config.split_seed + 1)
    if len(validation) < _FEW_TO_STOP_BY:
        logger.warning("early stopping uses only %d validation comparisons", len(validation))
    return (
        rest,
        validation,
        {"share a response with both training and validation": len(train) - len(rest) - len(validation)},
    )


def _warn_of_shared_prompts(train: list[Comparison], test: list[Comparison]) -> None:
    shared, total = shared_prompts(train, test)
    overlapping = shared_conversations(train, test)
    if shared and processes().is_main_process:
        logger.warning("%d of the %d prompts of the given held-out part are also in training", shared, total)
    if overlapping and processes().is_main_process:
        overlap = "are the beginning of a training prompt, or begin with one"
        logger.warning("%d of the %d prompts of the given held-out part %s", overlapping, total, overlap)


def warn_of_leaks(config: RunConfig, test: Comparisons) -> None:
    """Warn if the backbone is a run that was trained on prompts of the same log that are held out here."""
    if not test or not is_run(config.backbone.name) or not processes().is_main_process:
        return
    run = Path(config.backbone.name).expanduser()
    path = read_group(run, "data").get("path")
    if not isinstance(path, str) or not path or Path(path).resolve() != Path(config.data.path).resolve():
        return
    held_out = run / "test.jsonl"
    known = read_feedback(FeedbackConfig(str(held_out))).comparisons if held_out.is_file() else []
    prompts = {prompt_key(c.prompt) for c in test}
    if seen := len(prompts - {prompt_key(c.prompt) for c in known}):
        logger.warning(
            "%s was trained on %d of the %d prompts that are held out here, so results on them are too good: train it "
            "with the same seed (or data.split_seed), data.holdout_by and data.test_fraction",
            run,
            seen,
            len(prompts),
        )


def refuse_artefacts(comparisons: list[Comparison], data: DataConfig) -> None:
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


def refuse_ties(comparisons: Sequence[Comparison], data: FeedbackConfig) -> None:
    """Raise `DataError` if all comparisons to train on are ties, which say nothing about anybody's preferences."""
    if all(c.is_tie for c in comparisons):
        size = counted(len(comparisons), "training comparison")
        needed = "comparisons in which one response is preferred"
        raise DataError(f"{data.path}: only ties in {size}: nothing can be learnt without {needed}")


@contextmanager
def _naming_key(key: str) -> Iterator[None]:
    """Add the config key to change to a `PrmError` raised inside."""
    try:
        yield
    except PrmError as error:
        raise PrmError(f"config key '{key}': {error}") from None
