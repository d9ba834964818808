"""How sure, and how right, by what was learnt of people."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prm.evaluation.audit import audit
from prm.evaluation.audit.calibration import LEAST_COMPARED, Reliability, find_reliability
from prm.evaluation.training_counts import GROUPS, group_of, name_of
from prm.report import write_audit
from prm.report.text.audit import sections
from tests.prm.evaluation.audit.fakes import FakeScorer, judged

COUNTS = {"eve": 0, "few": 9, "ten": 10, "more": 29, "many": 100, "old": None}


def found(users: list[str], personal: float = 2.0) -> dict[str, Reliability]:
    n = len(users)
    margins = {"personal": np.full(n, personal), "uniform, tuned": np.full(n, 1.0)}
    p = np.arange(n) % 4 != 0  # three of four as both say
    return {group.train_comparisons: group for group in find_reliability(margins, p.astype(float), users, COUNTS)}


def test_groups_are_those_of_evaluate() -> None:
    assert [name_of(least) for least in GROUPS] == ["0", "1 to 9", "10 to 29", "30 to 99", "100 and more"]
    counts = (0, 1, 9, 10, 29, 30, 99, 100, 5000)
    assert [group_of(n) for n in counts] == [0, 1, 1, 10, 10, 30, 30, 100, 100]


def test_reliability_worked_by_hand() -> None:
    """Said 0.8808 and 0.7311, and 3 of 4 come out; two people of 10 to 29; nobody counted for one."""
    groups = found(["ten"] * 120 + ["more"] * 80 + ["eve"] * 240 + ["old"] * 400)
    assert list(groups) == ["0", "10 to 29"]
    group = groups["10 to 29"]
    assert (group.people, group.comparisons) == (2, 200)
    personal, uniform = group.models["personal"], group.models["uniform, tuned"]
    assert (personal.predicted, personal.observed) == pytest.approx((0.880797, 0.75))
    assert personal.error == pytest.approx(0.130797)
    assert uniform.error == pytest.approx(0.75 - 0.731059, abs=1e-6)
    assert uniform.error < uniform.by_chance
    assert (groups["0"].people, groups["0"].comparisons) == (1, 240)


def test_too_few_comparisons_are_counted_and_not_measured() -> None:
    groups = found(["few"] * (LEAST_COMPARED - 1) + ["many"] * LEAST_COMPARED)
    assert groups["1 to 9"].comparisons == LEAST_COMPARED - 1
    assert groups["1 to 9"].models == {}
    assert list(groups["100 and more"].models) == ["personal", "uniform, tuned"]


def test_the_page_shows_it_and_says_what_is_left_out(tmp_path: Path) -> None:
    """ann, of whom 30 were learnt, is told too surely by the personal model; zoe is a stranger with one comparison."""
    log = [judged("ann", f"q{i}", *(("a", "b") if i % 4 else ("b", "a"))) for i in range(LEAST_COMPARED)]
    log.append(judged("zoe", "q", "a", "b"))
    sure, fair = (FakeScorer(["ann"], lambda q, y, u, t, by=by: by * (y == "a")) for by in (4.0, 1.1))  # type: ignore[misc]
    result = audit(sure, fair, log)  # type: ignore[arg-type]
    part = next(part for part in sections(result) if part.title.startswith("Calibration"))
    assert [row[:6] for row in part.rows] == [
        ("30 to 99", "1", "200", "personal", "98.2", "75.0"),
        ("", "", "", "uniform, tuned", "75.0", "75.0"),
    ]
    assert "left out, with fewer than 200 comparisons: 0 (1)" in part.notes
    write_audit(result, tmp_path, "run")
    page = (tmp_path / "index.html").read_text()
    assert "Trained on 30 to 99: 1 user, 200 comparisons." in page
    assert (tmp_path / "reliability-30.png").is_file()
    sure.judgements = lambda user: None  # type: ignore[method-assign]
    uncounted = audit(sure, fair, [replace(c, user_id="ann") for c in log])  # type: ignore[arg-type]
    part = next(part for part in sections(uncounted) if part.title.startswith("Calibration"))
    assert (part.rows, len(part.notes)) == ((), 1)
    assert part.notes[0].startswith("in no group: 201 comparisons")
