"""Ratios of `benchmarks/questions.py`, by hand."""

import numpy as np
import pytest

from benchmarks import questions


def test_a_ratio_is_where_the_chosen_curve_meets_the_drawn_one() -> None:
    """Drawn questions lower the log loss by .01 each; chosen ones twice as fast, or after a first one that misleads."""
    drawn = np.array([1.0 - 0.01 * k for k in range(21)])
    fast = np.array([1.0 - 0.02 * k for k in range(21)])
    assert questions.ratio_of(drawn, drawn, 10) == pytest.approx(1.0)
    assert questions.ratio_of(fast, drawn, 5) == pytest.approx(0.5)
    misleading = np.array([1.0, 1.2, *fast[1:20]])  # .92 after 5 questions, .90 after 6
    assert questions.ratio_of(misleading, drawn, 10) == pytest.approx(0.6)
    assert questions.ratio_of(misleading, drawn, 9) == pytest.approx(5.5 / 9)
    assert questions.ratio_of(np.array([1.0] * 21), drawn, 1) == float("inf")


def test_draws_are_averaged_and_folds_joined() -> None:
    known = {
        "harms, seed 0, fold 2 | pair | random | 0": [[1.0, 0.0]],
        "harms, seed 0, fold 2 | pair | random | 1": [[3.0, 2.0]],
        "harms, seed 0, fold 3 | pair | random | 0": [[5.0, 6.0]],
        f"harms, seed 0, fold 0{questions.TUNED} | pair | random | 0": [[7.0, 8.0]],
    }
    found = questions.gathered(known)
    assert found["harms", "pair"]["random"].tolist() == [[2.0, 1.0], [5.0, 6.0]]
    assert found["harms" + questions.TUNED, "pair"]["random"].tolist() == [[7.0, 8.0]]
