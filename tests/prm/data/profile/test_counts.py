"""How much each person judged, who had enough, and which answers won: by hand."""

from dataclasses import asdict

import numpy as np
import pytest

from prm.data.comparison import Comparison
from prm.data.profile.arrays import encode_log, grouped, interval
from prm.data.profile.counts import count_people
from prm.metrics import estimate
from tests.prm.data.profile.logs import described, judged, many


def test_comparisons_per_person_leave_ties_aside() -> None:
    rows = [*many("a", 4), judged("a", "tie", p_chosen=0.5), judged("b", "q1"), judged("c", "tie", p_chosen=0.5)]
    people = described(rows).people
    assert (people.people, people.comparisons, people.ties, people.most) == (3, 7, 2, 4)
    assert [tuple(asdict(b).values()) for b in people.histogram if b.people] == [
        ("0", 1, pytest.approx(1 / 3), 0.0),
        ("1", 1, pytest.approx(1 / 3), 0.2),
        ("2-4", 1, pytest.approx(1 / 3), 0.8),
    ]
    assert people.quartiles == (0.5, 1.0, 2.5)  # of 0, 1, 4
    assert people.median_answers == 2.0  # of 10, 2, 2


@pytest.mark.parametrize(
    ("n", "label"), [(4, "2-4"), (5, "5-9"), (9, "5-9"), (10, "10-29"), (299, "100-299"), (300, "300+")]
)
def test_bins_hold_their_edges(n: int, label: str) -> None:
    histogram = count_people(encode_log(many("a", n))).histogram
    assert [b.label for b in histogram if b.people] == [label]
    assert [b.label for b in histogram] == ["1", "2-4", "5-9", "10-29", "30-99", "100-299", "300+"]


def test_who_has_enough() -> None:
    people = count_people(encode_log([*many("a", 29), *many("b", 30), *many("c", 99), *many("d", 100)]))
    assert (people.enough.people, people.enough.share_of_people) == (3, 0.75)
    assert people.enough.share_of_comparisons == pytest.approx(229 / 258)
    assert (people.ample.people, people.ample.share_of_comparisons) == (1, pytest.approx(100 / 258))


def test_longer_answer_ties_and_equal_lengths_aside() -> None:
    rows = [*many("a", 3), *many("b", 1, longer=False), judged("a", "t", p_chosen=0.5)]
    rows += [Comparison("b", "e", "two words", "just two")]
    found = described(rows).longer_won
    assert found is not None
    assert (found.comparisons, found.share.value) == (4, 0.75)
    assert found.share == estimate([1, 1, 1, 0], ["a", "a", "a", "b"])  # people are drawn, not pairs
    assert described([Comparison("b", "e", "two words", "just two")]).longer_won is None


def test_answer_shown_first() -> None:
    rows = [judged("a", "1", chosen_first=True), judged("a", "2", chosen_first=False), judged("b", "3")]
    rows += [judged("b", "4", chosen_first=True), judged("b", "5", chosen_first=True, p_chosen=0.5)]
    found = described(rows).first_won
    assert found is not None
    assert (found.comparisons, found.share.value) == (3, pytest.approx(2 / 3))
    assert described(many("a", 2)).first_won is None


def test_nothing_counted_has_no_interval() -> None:
    assert interval(np.zeros(0), np.zeros(0)) is None
    assert grouped(np.full(3, np.nan), np.zeros(3, np.int64)) is None
