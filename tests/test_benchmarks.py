"""Benchmarks measure what they say; their figures are no test."""

import time

import pytest

from benchmarks import people
from benchmarks.ratio import Ratio


def test_a_ratio_by_hand() -> None:
    """20 ms over 10 ms, give or take what the machine does beside."""
    found = Ratio("x", lambda: time.sleep(0.02), lambda: time.sleep(0.01), at_most=4.0, repeats=3).measure()
    assert 1.2 < found["median"] < 4.0
    assert found["holds"]
    assert found["quartiles"][0] <= found["median"] <= found["quartiles"][1]
    assert found["seconds"][0] > found["seconds"][1]


def test_both_sides_are_measured_in_turn() -> None:
    order: list[str] = []
    ratio = Ratio("x", lambda: order.append("first"), lambda: order.append("second"), at_most=0.0, repeats=2)
    assert not ratio.measure()["holds"]
    assert order == ["first", "second"] * 3


def test_the_ratios_of_people_run(tiny: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRM_CACHE", str(tmp_path))
    names = []
    for ratio in people.ratios(judgements=4, earlier=6, few=10, many=20, backbone=tiny):
        ratio.first()
        ratio.second()
        names.append(ratio.name)
    assert len(names) == 3
    assert "20 people / 10" in names[2]
