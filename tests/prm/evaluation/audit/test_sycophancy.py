"""Agreement with what people say, and the drift of strangers."""

from math import log

import numpy as np
import pytest

from prm.evaluation.audit import ask_views
from prm.evaluation.audit.generic_user import find_drift
from prm.evaluation.audit.sycophancy import content_words, find_echo, load_views, repeated, views_row
from tests.prm.evaluation.audit.fakes import FakeScorer

VIEWS = load_views()


def test_the_questions_are_balanced_and_say_each_thing_once() -> None:
    """Nobody scores by "yes" or "no", and the true answer is as long as the false one on average, within a word."""
    assert len(VIEWS) == 20
    assert len({v.question for v in VIEWS}) == len({v.view for v in VIEWS}) == 20
    for start, other in (("Yes, ", "No, "), ("No, ", "Yes, ")):
        mine = [v for v in VIEWS if v.agrees.startswith(start)]
        assert len(mine) == 10
        assert all(v.differs.startswith(other) for v in mine)
    words = [len(v.agrees.split()) - len(v.differs.split()) for v in VIEWS]
    assert abs(np.mean(words)) < 1
    assert all(v.question.endswith("?") and v.view.endswith(".") for v in VIEWS)


def test_a_planted_sycophant_is_distinguished_from_one_who_knows_no_better() -> None:
    """ann's answers agree once a view is stated; ben's are false whatever is stated; strangers get the truth."""

    def reward(prompt: str, response: str, user: str | None, text: str) -> float:
        view = next(v for v in VIEWS if response in (v.agrees, v.differs) and prompt.endswith(v.question))
        false, stated = response == view.agrees, prompt.startswith(view.view)
        wants_false = {"ann": stated, "ben": True, None: False}[user]
        return float(false == wants_false)

    scorer = FakeScorer(["ann", "ben"], reward)
    found = ask_views(scorer, FakeScorer([], lambda *_: 0.0), VIEWS)  # type: ignore[arg-type]
    assert found.shift_of_people == {"ann": 1.0, "ben": 0.0}
    personal, generic, uniform = found.rows
    assert (personal.stated.value, personal.alone.value, personal.shift.value) == (1.0, 0.5, 0.5)
    assert (generic.stated.value, generic.alone.value) == (0.0, 0.0)
    assert (uniform.stated.value, uniform.alone.value) == (0.5, 0.5)
    assert (found.questions, found.people) == (20, 2)


def test_many_readers_are_a_hundred_drawn_by_seed() -> None:
    scorer = FakeScorer([f"u{i}" for i in range(130)], lambda *_: 0.0)
    found = [ask_views(scorer, scorer, VIEWS[:2]) for _ in range(2)]  # type: ignore[arg-type]
    assert found[0] == found[1]
    assert found[0].people == len(found[0].shift_of_people) == 100


def test_a_views_row_is_drawn_over_questions() -> None:
    """Two readers agree on every question, so that only the questions spread: 0.5 / sqrt(20) = 0.112."""
    stated = np.tile(np.repeat([1.0, -1.0], 10), (2, 1))
    row = views_row("x", stated, -np.ones((2, 20)))
    assert (row.stated.value, row.alone.value, row.shift.value) == (0.5, 0, 0.5)
    assert row.shift.high - row.shift.low == pytest.approx(2 * 1.96 * 0.112, rel=0.2)


def test_words_of_content() -> None:
    assert content_words("I would LIKE cycling, and old Maps; cycling2 über_alles") == {
        "cycling",
        "maps",
        "über",
        "alles",
    }
    assert repeated("Cycling and maps", "Maps of maps for cyclists") == 1


def test_echo_worked_by_hand() -> None:
    """Four pairs; in three one answer repeats more. Reading the text moves two of three picks to it, one wrongly."""
    chosen, rejected = np.array([2, 0, 1, 1]), np.array([0, 1, 0, 1])
    without, with_text = np.array([-1.0, 1.0, 1.0, 1.0]), np.array([1.0, -1.0, 1.0, 1.0])
    found = find_echo(with_text, without, (chosen, rejected), np.ones(4), list("abcd"))
    assert found.with_text is not None
    assert found.without_text is not None
    assert (found.with_text.people.value, found.with_text.pairs) == (pytest.approx(2 / 3), 3)
    assert list(found.with_text.picks.values()) == [1.0]
    assert list(found.without_text.picks.values()) == [pytest.approx(1 / 3)]
    assert found.shift is not None
    assert found.shift.value == pytest.approx(2 / 3)
    assert found.gain.value == 0
    assert found.nats_saved.value == pytest.approx(0)
    nothing = find_echo(with_text, without, (chosen, chosen), np.ones(4), list("abcd"))
    assert (nothing.shift, nothing.with_text, nothing.comparisons) == (None, None, 4)


def test_drift_worked_by_hand() -> None:
    """sigmoid(log 3) = 3/4 against 1/4, 1/2 and twice 3/4; picks differ, are half a tie, and agree twice."""
    generic, uniform = np.array([log(3)] * 4), np.array([-log(3), 0.0, log(3), log(3)])
    found = find_drift(generic, uniform, np.ones(4), ["a", "b", "c", "d"])
    assert found.agreement.value == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert found.distance.value == pytest.approx((0.5 + 0.25) / 4)
    assert found.generic_nats.value == pytest.approx(-log(3 / 4))
    assert found.saved.value == pytest.approx((-log(1 / 4) - log(1 / 2) - 2 * log(3 / 4)) / 4 + log(3 / 4))
    assert found.gain.value == pytest.approx(1 - 2.5 / 4)
