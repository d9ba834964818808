"""New people and further judgements into a run folder (`prm adapt`), without training anything that is shared."""

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm import checkpoint as checkpoints
from prm.backbones import choose_device
from prm.comparison import Comparison, fingerprint
from prm.controls import length_signs
from prm.errors import PrmError
from prm.files import read_rows, write_json
from prm.folders import atomic_folder, link_tree
from prm.scorer import Scorer

logger = logging.getLogger(__name__)


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
) -> Adapted:
    """Take judgements into the run in `run`, or into a copy in `output`; the folder changes at once or not at all.

    Files that stay as they are have two names then, that of the run and that of the copy.

    Evaluations and audits of the run are deleted: they were of other people. Raises `PrmError` where `output` exists
    or there is nothing to take in, and for a uniform model.

    Args:
        anew: forget what was known of these people: the comparisons are all their judgements.
        backbone: where the backbone lies now, if it was moved.
    """
    target = run if output is None else output
    if output is not None and output.exists():
        raise PrmError(
            f"{output} exists already: name another folder, or leave out the output to change the run itself"
        )
    if not comparisons:
        raise PrmError("there is no comparison to take in")
    checkpoint = checkpoints.load(run, backbone, choose_device())
    _warn_of_held_out(run, comparisons)
    scorer = Scorer(checkpoint, cache=True)
    counts = Counter(c.user_id for c in comparisons)
    further = {} if anew else {user: n for user, n in counts.items() if scorer.knows(user)}
    started = time.perf_counter()
    steps = scorer.adapt(comparisons, anew=anew)
    seconds = time.perf_counter() - started
    found = Adapted({u: n for u, n in counts.items() if u not in further}, further, steps, seconds)
    record = checkpoints.read_run(run)
    record["data"]["has_user_text"] |= any(c.user_text for c in comparisons)
    record.setdefault("adapted", []).append(
        {"fingerprint": fingerprint(comparisons), "comparisons": len(comparisons), "people": len(counts), "anew": anew}
    )
    with atomic_folder(target) as temporary:
        link_tree(run, temporary)
        for path in [*temporary.glob("evaluation*"), *temporary.glob("audit*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        _learn_length_signs(temporary / "controls.json", comparisons, anew)
        checkpoints.save(checkpoint, temporary, record, shared=False)
    return found


def _learn_length_signs(path: Path, comparisons: Sequence[Comparison], anew: bool) -> None:
    earlier = json.loads(path.read_text(encoding="utf-8"))["length_sign"] if path.is_file() else {}
    if anew:
        earlier = {user: sign for user, sign in earlier.items() if user not in {c.user_id for c in comparisons}}
    write_json(path, {"length_sign": length_signs(comparisons, earlier)})


def _warn_of_held_out(run: Path, comparisons: Sequence[Comparison]) -> None:
    """Say so where judgements are the ones that the run holds out to be measured by."""
    test = run / "test.jsonl"
    if not test.is_file():
        return

    def name(user: str, prompt: Any, answers: Sequence[str]) -> str:
        return json.dumps([user, prompt, sorted(answers)])

    asked = {name(r["user_id"], r["prompt"], [r["chosen"], r["rejected"]]) for _, r in read_rows(test)}
    rows = [c.to_row() for c in comparisons]
    both = sum(name(r["user_id"], r["prompt"], [r["chosen"], r["rejected"]]) in asked for r in rows)
    if both:
        logger.warning("%d of the judgements are held out in %s: it can no longer measure these people", both, test)
