"""What pictures of users mark."""

import math

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from prm.evaluation.audit.per_user import UserResult, UserResults
from prm.metrics import MIN_COMPARISONS, Estimate
from prm.report.drawing import svg
from prm.report.pictures import change_histogram, change_picture

TESTED = {"gains", "unclear", "loses"}


def changes(*nats: Estimate, comparisons: int = MIN_COMPARISONS) -> UserResults:
    return UserResults(
        tuple(
            UserResult(f"u{i}", comparisons, 2, 1.0, 0.5, 1, 0, 1.0, "unclear", e, 1.0, "unclear")
            for i, e in enumerate(nats)
        )
    )


def legend(picture: Figure) -> set[str]:
    return {text.get_text() for text in picture.legends[0].get_texts()}


def places(picture: Figure) -> list[tuple[float, float]]:
    """Of dots and arrows."""
    found = [one for one in picture.axes[0].collections if isinstance(one, PathCollection)]
    return [(float(x), float(y)) for one in found for x, y in np.asarray(one.get_offsets()) if one.get_zorder() == 2]


def test_users_who_are_not_tested_are_a_class_of_their_own() -> None:
    few, enough = changes(Estimate(0.1, 0.0, 0.2), comparisons=MIN_COMPARISONS - 1), changes(Estimate(0.1, 0.0, 0.2))
    for draw in (change_picture, change_histogram):
        assert legend(draw(few)) == {*TESTED, "not tested"}
        assert legend(draw(enough)) == TESTED


def test_the_cut_ends_of_intervals_are_arrows_and_no_others() -> None:
    whole = change_picture(changes(Estimate(0.1, -0.3, 0.3)))
    assert places(whole) == [(0.1, 0.0)]
    cut = change_picture(changes(Estimate(0.1, -0.31, 0.2), Estimate(-0.2, -math.inf, math.inf)))
    xs, ys = zip(*places(cut), strict=True)
    assert xs == pytest.approx([0.1, -0.6, 0.6, -0.2])
    assert ys == (0, 1, 1, 1)
    assert len(legend(cut) - legend(whole)) == 1
    assert "nan" not in str(svg(cut))
