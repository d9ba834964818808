"""Figures by hand: no infinity, no "nan" and no -0 reaches a reader, in any of the places that write one."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from prm.data.comparison import Comparison
from prm.evaluation.rows import Labels, make_rows
from prm.experiments.claims import learns_slower
from prm.io.formatting import bar, estimated, figure, gain, interval
from prm.metrics import Calibration, Estimate
from prm.report.text import evaluation as text
from prm.report.text import profile as profile_text
from prm.report.text import units
from tests.prm.data.profile.logs import described

INF, NAN = math.inf, math.nan
WHOLE_LINE, NOTHING = Estimate(0.25, -INF, INF), Estimate(NAN, -INF, INF)


def test_figures_by_hand() -> None:
    assert [figure(x) for x in (0.06, -0.04, -0.0, NAN, INF, None)] == ["0.1", "0.0", "0.0", "-", "-", "-"]
    assert [figure(x, 3, "+") for x in (0.5, -0.0001, -1.0)] == ["+0.500", "+0.000", "-1.000"]
    assert estimated(Estimate(0.5, -0.04, 0.75), scale=100, unit="%") == "50.0% [-4.0, 75.0]"
    assert estimated(Estimate(0.0, -0.00001, 1.0), digits=2, sign="+") == "+0.00 [+0.00, +1.00]"
    assert [estimated(e) for e in (WHOLE_LINE, NOTHING, None)] == ["0.2", "-", "-"]
    assert interval(Estimate(1.0, 0.0, INF)) == ""
    assert bar(Estimate(0.5, 0.25, 1.0), 100.0) == [[25.0], [50.0]]
    assert bar(WHOLE_LINE) is None


WRITERS: dict[str, Callable[[Estimate], str]] = {
    "share": profile_text.share,
    "percent": text.percent,
    "nats": text.nats,
    "points": units.points,
    "nats of an audit": units.nats,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("e", [WHOLE_LINE, NOTHING, Estimate(NAN, NAN, NAN), Estimate(0.1, NAN, NAN)])
def test_every_writer_of_an_estimate_keeps_to_it(writer: str, e: Estimate) -> None:
    text = WRITERS[writer](e)
    assert "inf" not in text
    assert "nan" not in text
    assert (text == "-") == math.isnan(e.value)


def test_other_writers_keep_to_it() -> None:
    assert text.with_error(NAN, 0.1) == profile_text.percent(NAN) == units.percent(NAN) == "-"
    assert text.with_error(0.5, NAN) == "50.0"
    assert text.calibration_error(Calibration(NAN, NAN, ())) == "-"


def test_one_person_of_ties_alone_makes_rows_without_them() -> None:
    """Of ties no accuracy can be told, of one person no interval."""
    labels = Labels(np.full(3, 0.5), np.array(["a"] * 3), np.array(["a"] * 3), np.ones(3, np.bool_))
    (row,) = make_rows({"personal": np.array([0.1, -0.2, 0.3])}, {}, labels)
    assert text.percent(row.accuracy) == "-"
    assert text.nats(row.nll).count(" ") == 0


def test_a_log_of_one_shared_pair_is_described_without_them() -> None:
    rows = [Comparison(user, f"p{user if i else 0}{i}", "a b", "c") for user in "xy" for i in range(20)]
    found = described(rows)
    said = [*found.verdict.reasons, *(cell for s in profile_text.sections(found) for row in s.rows for cell in row)]
    assert not [text for text in said if "inf" in text.split() or "nan" in text]


def test_who_never_learns_takes_no_infinite_number_of_steps() -> None:
    class Look:
        step, accuracy = 50, 0.9

    class Row:
        def __init__(self, *looks: Look):
            self.looks = looks

    holds, figures = learns_slower("a", "b").judge({"a": Row(), "b": Row(Look())})  # type: ignore[dict-item]
    assert holds
    assert figures == "never against 50 steps to 80%"


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((0.0124, 0.001, 0.02), "log loss lower by 0.012 [0.001, 0.020] nats"),
        ((-0.0006, -0.002, 0.001), "log loss higher by 0.001 [-0.001, 0.002] nats"),
        ((-0.0004, -0.002, 0.001), "no difference seen in log loss, [-0.002, +0.001] nats"),
        ((0.0, -0.0001, 0.0001), "no difference seen in log loss"),
        ((0.0, -math.inf, math.inf), "no difference seen in log loss"),
    ],
)
def test_a_difference_that_rounds_to_nothing_is_none(ends: tuple[float, float, float], text: str) -> None:
    assert gain(Estimate(*ends), "log loss", ("lower", "higher"), "nats", 3) == text
