"""New people and further judgements into a run folder (`prm adapt`), without training anything that is shared."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm.checkpoint import checkpoint as checkpoints
from prm.config import FeedbackConfig
from prm.data.baselines import length_signs
from prm.data.comparison import Comparison, Prompt, fingerprint
from prm.data.sources import read_feedback
from prm.data.sources.feedback import distinguishable
from prm.errors import PrmError, fold
from prm.io.disk import make_folder, remove
from prm.io.folders import changed_folder, working_in
from prm.io.run_files import read_length_signs, read_run
from prm.io.tables import read_rows, write_json, write_jsonl
from prm.models.backbones import choose_device
from prm.scoring.scorer import Scorer
from prm.training.work_folder import STALE

logger = logging.getLogger(__name__)

_NAMED = 3


@dataclass(frozen=True)
class Adapted:
    """What was taken in.

    Args:
        new: judgements by person whom the run did not know, or was to know `anew`.
        further: judgements by person whom it knew.
        steps: of the fit.
        seconds: of reading the texts and fitting, the loading of the model left out.
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
    skipped: Sequence[dict[str, Any]] = (),
) -> Adapted:
    """Take judgements into the run in `run`, or into a copy in `output`; the folder changes at once or not at all.

    Files that stay as they are have two names then, that of the run and that of the copy.

    What was measured of the run is deleted: it was of other people. Raises `PrmError` where `output` exists
    or there is nothing to take in, and for a uniform model.

    Args:
        anew: forget what was known of these people: the comparisons are all their judgements.
        backbone: where the backbone lies now, if it was moved.
        skipped: rows of the log that were left out; the run's `skipped.jsonl` lists them behind its own.
    """
    with ExitStack() as stack:
        if output is not None:
            make_folder(output.parent)
        for folder in sorted({run, output or run}):  # nobody changes what is read, either
            stack.enter_context(working_in(folder))
        return _adapt(run, comparisons, output, anew, backbone, skipped)


def _adapt(
    run: Path,
    comparisons: Sequence[Comparison],
    output: Path | None,
    anew: bool,
    backbone: str | None,
    skipped: Sequence[dict[str, Any]],
) -> Adapted:
    target = run if output is None else output
    if output is not None and target.exists():
        raise PrmError(
            f"{target} exists already: name another folder, or leave out the output to change the run itself"
        )
    if not comparisons:
        raise PrmError("there is no comparison to take in")
    record = read_run(run, "data.has_user_text")
    entry = _entry(comparisons, anew)
    if record.get("adapted", [])[-1:] == [entry] and output is None:  # by a command that was killed at its very end
        logger.warning("%s: these comparisons were the last that were taken in; they are not taken in twice", run)
        return Adapted({}, {}, 0, 0.0)
    signs, left_out = _earlier_signs(run, comparisons, anew), run / "skipped.jsonl"
    listed = [row for _, row in read_rows(left_out)] if skipped and left_out.exists() else []
    checkpoint = checkpoints.load(run, backbone, choose_device())
    _warn_of_held_out(run, comparisons)
    scorer = Scorer(checkpoint, cache=True)
    counts = Counter(c.user_id for c in comparisons)
    further = {} if anew else {user: n for user, n in counts.items() if scorer.knows(user)}
    started = time.perf_counter()
    steps = scorer.adapt(comparisons, anew=anew)
    seconds = time.perf_counter() - started
    found = Adapted({u: n for u, n in counts.items() if u not in further}, further, steps, seconds)
    record["data"]["has_user_text"] |= any(c.user_text for c in comparisons)
    record.setdefault("adapted", []).append(entry)
    with changed_folder(run, target) as temporary:
        for path in [path for pattern in STALE for path in temporary.glob(pattern)]:
            remove(path)
        write_json(temporary / "controls.json", {"length_sign": length_signs(comparisons, signs)})
        if skipped:
            write_jsonl(temporary / "skipped.jsonl", [*listed, *skipped])
        checkpoints.save(checkpoint, temporary, record, shared=False)
    return found


def _entry(comparisons: Sequence[Comparison], anew: bool) -> dict[str, Any]:
    """What `run.json` says of comparisons that were taken in."""
    people = len({c.user_id for c in comparisons})
    size = {"comparisons": len(comparisons), "people": people}
    return {"fingerprint": fingerprint(comparisons), **size, "anew": anew}


def _earlier_signs(run: Path, comparisons: Sequence[Comparison], anew: bool) -> dict[str, float]:
    """Who likes them longer, without those who are learnt anew."""
    people = {c.user_id for c in comparisons} if anew else set()
    return {user: sign for user, sign in (read_length_signs(run) or {}).items() if user not in people}


def _warn_of_held_out(run: Path, comparisons: Sequence[Comparison]) -> None:
    """Say so where judgements are the ones that the run holds out to be measured by."""
    test = run / "test.jsonl"
    if not test.exists():
        return

    def name(c: Comparison) -> tuple[str, Prompt, frozenset[str]]:
        return c.user_id, c.prompt, frozenset((c.chosen, c.rejected))

    asked = {name(c) for c in read_feedback(FeedbackConfig(path=str(test))).comparisons}
    both = sum(name(c) in asked for c in comparisons)
    if both:
        logger.warning("%d of the judgements are held out in %s: it can no longer measure these people", both, test)


def warn_about_similar_ids(run: Path, comparisons: Sequence[Comparison]) -> None:
    """Say so where new people's ids look like those of people whom the run knows: one person may be two."""
    index = checkpoints.read_users(run)
    new = [user for user in dict.fromkeys(c.user_id for c in comparisons) if user not in index]
    known = {fold(user): user for user in index.ids} if new else {}
    alike = [(user, known[fold(user)]) for user in new if fold(user) in known]
    if alike:
        pairs = [distinguishable(pair) for pair in alike[:_NAMED]]
        more = f" and {len(alike) - _NAMED} more" if len(alike) > _NAMED else ""
        shown = ", ".join(f"{user} ({near})" for user, near in pairs)
        logger.warning("new people whose ids look like known ones: %s%s; one person?", shown, more)
