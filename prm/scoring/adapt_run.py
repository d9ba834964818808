"""Add users and further comparisons to a run folder (`prm adapt`), without training shared weights."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from prm.checkpoint import checkpoint as checkpoints
from prm.config import FeedbackConfig
from prm.data.baselines import length_votes, votes_of
from prm.data.comparison import Comparison, Prompt, fingerprint
from prm.data.sources import read_feedback
from prm.data.sources.collector import SkippedRow, distinguishable
from prm.errors import PrmError, fold
from prm.io.disk import make_folder, remove
from prm.io.environment import now
from prm.io.folders import changed_folder, refuse_existing, working_in
from prm.io.run_files import Controls, TakenIn, read_controls, read_run
from prm.io.tables import read_rows, write_json, write_jsonl
from prm.models.backbones import choose_device
from prm.scoring.scorer import Scorer
from prm.scoring.update_users import update_users
from prm.training.work_folder import STALE
from prm.users.index import UserIndex

logger = logging.getLogger(__name__)

_NAMED = 3


@dataclass(frozen=True)
class Adapted:
    """What was added.

    Args:
        new: number of comparisons by user, for users who are new or fitted `anew`.
        further: number of comparisons by user, for users whom the run knew.
        steps: of the fit.
        seconds: for reading the texts and fitting, without loading the model.
    """

    new: dict[str, int]
    further: dict[str, int]
    steps: int
    seconds: float


def adapt_run(
    run: Path,
    comparisons: Sequence[Comparison],
    output: Path | None = None,
    anew: bool = False,
    backbone: str | None = None,
    skipped: Sequence[SkippedRow] = (),
) -> Adapted:
    """Add comparisons to the run in `run`, or to a copy in `output`; the folder changes atomically.

    Comparisons that their users were fitted to already, with whatever label, are left out with a warning, unless
    `anew`. Unchanged files of a copy are hard links to those of the run. Results of earlier evaluations are deleted, as
    they are of other users. Raises `PrmError` if `output` exists, if there are no comparisons, or none to add to a
    copy, and for a uniform model.

    Args:
        anew: forget these users' earlier comparisons first: the given ones are all.
        backbone: path of the backbone, if it was moved.
        skipped: rows of the log that were left out; they are appended to the run's `skipped.jsonl`.
    """
    with ExitStack() as stack:
        if output is not None:
            make_folder(output.parent)
        for folder in sorted({run, output or run}):  # also lock the run that is read
            stack.enter_context(working_in(folder))
        return _adapt(run, comparisons, output, anew, backbone, skipped)


def _adapt(
    run: Path,
    comparisons: Sequence[Comparison],
    output: Path | None,
    anew: bool,
    backbone: str | None,
    skipped: Sequence[SkippedRow],
) -> Adapted:
    target = run if output is None else output
    if output is not None:
        refuse_existing(target, "name another folder")
    if not comparisons:
        raise PrmError("there are no comparisons to add")
    record, read_at = read_run(run, "data.has_user_text"), now()
    entry = _entry(comparisons, anew)
    if record.get("adapted", [])[-1:] == [entry] and output is None:  # by a command that was killed at its end
        logger.warning("%s: the last command added these comparisons already; they are not added twice", run)
        return Adapted({}, {}, 0, 0.0)
    checkpoints.check_comparisons(run)
    skipped_file = run / "skipped.jsonl"
    earlier_skipped = [row for _, row in read_rows(skipped_file)] if skipped and skipped_file.exists() else []
    checkpoint = checkpoints.load(run, backbone, choose_device())
    if not anew:
        comparisons = _without_learnt(run, comparisons, checkpoint.users)
        if not comparisons and output is not None:
            raise PrmError(f"{run} has learnt all of these comparisons: there is nothing to add, and no {output}")
        if not comparisons:
            return Adapted({}, {}, 0, 0.0)
    votes, entry = _earlier_votes(run, comparisons, anew), _entry(comparisons, anew)
    _warn_of_held_out(run, comparisons)
    scorer = Scorer(checkpoint, cache=True)
    counts = Counter(c.user_id for c in comparisons)
    further = {} if anew else {user: n for user, n in counts.items() if scorer.knows(user)}
    started = time.perf_counter()
    steps = update_users(checkpoint, scorer.reader, comparisons, anew=anew)
    seconds = time.perf_counter() - started
    adapted = Adapted({u: n for u, n in counts.items() if u not in further}, further, steps, seconds)
    record["data"]["has_user_text"] |= any(c.user_text for c in comparisons)
    record["data"]["read_at"] = read_at
    record.setdefault("adapted", []).append(entry)
    with changed_folder(run, target) as temporary:
        stale = sorted({path for pattern in STALE for path in temporary.glob(pattern)})
        for path in stale:
            remove(path)
        write_json(temporary / "controls.json", length_votes(comparisons, votes))
        if skipped:
            write_jsonl(temporary / "skipped.jsonl", [*earlier_skipped, *skipped])
        checkpoints.save(checkpoint, temporary, record, shared=False)
    if stale and output is None:
        names = ", ".join(path.name for path in stale)
        logger.warning("%s: deleted %s, as these results are of the users before", target, names)
    return adapted


def _entry(comparisons: Sequence[Comparison], anew: bool) -> TakenIn:
    """The entry of `run.json` for added comparisons."""
    num_users = len({c.user_id for c in comparisons})
    size = len(comparisons)
    return {"fingerprint": fingerprint(comparisons), "comparisons": size, "people": num_users, "anew": anew}


def _earlier_votes(run: Path, comparisons: Sequence[Comparison], anew: bool) -> Controls | None:
    """What the run's users chose by length, without those who are fitted anew."""
    refitted = {c.user_id for c in comparisons} if anew else set()
    votes = read_controls(run)
    return votes_of(votes, lambda user: user not in refitted) if votes is not None else None


def _without_learnt(run: Path, comparisons: Sequence[Comparison], users: UserIndex) -> Sequence[Comparison]:
    """The comparisons that their users were not fitted to, with a warning if others are left out."""
    new = [c for c, known in zip(comparisons, users.are_learnt(comparisons), strict=True) if not known]
    if len(new) < len(comparisons):
        logger.warning(
            "%d of the %d comparisons are in %s already and are not added twice; to replace what the run knows of "
            "these users, use --refit with all their comparisons",
            len(comparisons) - len(new),
            len(comparisons),
            run,
        )
    return new


def _warn_of_held_out(run: Path, comparisons: Sequence[Comparison]) -> None:
    """Warn if comparisons are in the run's held-out test part."""
    test = run / "test.jsonl"
    if not test.exists():
        return

    def key(c: Comparison) -> tuple[str, Prompt, frozenset[str]]:
        return c.user_id, c.prompt, frozenset((c.chosen, c.rejected))

    held_out = {key(c) for c in read_feedback(FeedbackConfig(path=str(test))).comparisons}
    shared = sum(key(c) in held_out for c in comparisons)
    if shared:
        logger.warning("%d of the comparisons are held out in %s: it can no longer test these users", shared, test)


def warn_about_similar_ids(run: Path, comparisons: Sequence[Comparison]) -> None:
    """Warn of new users whose ids look like those of known users: they may be the same."""
    index = checkpoints.read_users(run)
    new_users = [user for user in dict.fromkeys(c.user_id for c in comparisons) if user not in index]
    known = {_folded(user): user for user in index.ids} if new_users else {}
    similar = [(user, known[_folded(user)]) for user in new_users if _folded(user) in known]
    if similar:
        pairs = [distinguishable(pair) for pair in similar[:_NAMED]]
        more = f" and {len(similar) - _NAMED} more" if len(similar) > _NAMED else ""
        hints = ", ".join(f"{user} ({known_id})" for user, known_id in pairs)
        logger.warning("new users whose ids look like known ones: %s%s; the same user?", hints, more)


def _folded(user: str) -> str:
    return fold(user).removesuffix(".0")  # a number that was written as a float
