"""What cross-validation finds is what held-out comparisons give, on real people (`benchmarks/cross_validation.py`)."""

import json
from pathlib import Path

import pytest

from benchmarks import cross_validation
from benchmarks.cross_validation import Draw
from tests.paths import SHARED

DATA = SHARED / "data"


def draw(promised: float, given: float, error: float, accuracy: float) -> Draw:
    return Draw(kind="bayes", promised=promised, given=given, error=error, accuracy=accuracy, averaged=1)


def test_means_of_draws_by_hand() -> None:
    """Two draws: off by 0.02 and -0.30, with errors of 0.05 and 0.10."""
    draws: dict[str, list[Draw]] = {
        "log | 500 | 0 | bayes": [draw(0.52, 0.5, 0.05, 0.7)],
        "log | 500 | 1 | bayes": [draw(0.3, 0.6, 0.1, 0.6)],
    }
    assert cross_validation.rows_of(draws) == [
        ["log", "500", "bayes", "2", "0.410", "0.550", "-0.140 ± 0.079", "1 of 2", "65.0"]
    ]


@pytest.mark.data
@pytest.mark.model
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_a_promise_is_kept_and_not_measured_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--data", str(DATA), "--sets", "harms", "--sizes", "300", "--draws", "1"]
    cross_validation.main(arguments, tmp_path)
    found = json.loads((tmp_path / "cross-validation.json").read_text())
    (rows,) = found.values()
    assert [row["kind"] for row in rows] == ["uniform", "individual", "bayes"]
    for row in rows:
        assert abs(row["promised"] - row["given"]) < 1.96 * row["error"]
        assert row["error"] < 0.1
    monkeypatch.setattr(cross_validation, "read", None)
    cross_validation.main(arguments, tmp_path)
    assert json.loads((tmp_path / "cross-validation.json").read_text()) == found
