"""Comparisons of a log that a run was trained on: results on them say nothing about others."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prm.data.comparison import Comparison
from prm.io.run_files import Overlap, read_run

if TYPE_CHECKING:  # reports read evaluations, and need no torch
    from prm.scoring.scorer import Scorer

logger = logging.getLogger(__name__)


def find_overlap(run: str | Path, scorer: "Scorer", comparisons: Sequence[Comparison]) -> Overlap | None:
    """Count the comparisons that a run was trained on, and warn if there are any; a uniform model has them of anybody.

    `None` if the run does not record what it was trained on. Raises `CheckpointError` if the record is damaged.
    """
    from prm.checkpoint.checkpoint import check_comparisons  # imports torch

    check_comparisons(Path(run))
    trained_on = scorer.checkpoint.users.trained_on
    if trained_on is None:
        logger.info("%s does not record what it was trained on: whether these comparisons were is not checked", run)
        return None
    overlap = trained_on.overlap(comparisons)
    if scorer.checkpoint.settings.users.kind == "uniform":
        overlap = {"own": overlap["own"] + overlap["others"], "others": 0}
    if overlap["own"]:
        logger.warning(
            "%s was trained on %d of these %d comparisons, so its results are too good: %s",
            run,
            overlap["own"],
            len(comparisons),
            _instead(Path(run)),
        )
    return overlap


def in_words(overlap: Overlap | None, comparisons: int) -> str:
    """The overlap in a sentence; empty if there is none, or if it is not known."""
    parts = []
    if overlap is not None and (own := overlap["own"]):
        parts.append(f"the run was trained on {own} of these {comparisons} comparisons, so its results are too good")
    if overlap is not None and (others := overlap["others"]):
        parts.append(f"it was trained on other users' comparisons of the same responses for {others} of them")
    return "; ".join(parts)


def how_to_hold_out(run: Path) -> str:
    """What to do so that a run holds comparisons out, by how it was trained."""
    if trainer := read_run(run).get("trainer"):
        return f"keep a part of the data set out of the 'train_dataset' of {trainer}, and name that part"
    return "train again with --data.test_fraction 0.2"


def _instead(run: Path) -> str:
    held_out = run / "test.jsonl"
    if held_out.is_file():
        return f"leave them out, or take those that are held out in {held_out}"
    return f"leave them out, or {how_to_hold_out(run)}"
