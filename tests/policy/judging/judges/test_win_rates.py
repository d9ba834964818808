"""Win rates worked out by hand, and what must not change them."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.judging.judges import Duel, JudgedDuels, WinRate, by_rule, matrix_table, shorter, win_matrix, win_rate
from prm.data.comparison import Comparison
from prm.errors import PrmError

NAN = float("nan")
#        anna: two wins and a tie  ben: a loss and a tie   carl: a win, one not judged
SCORES = [1.0, 1.0, 0.5, 0.0, 0.5, 1.0, NAN]
USERS = ["anna", "anna", "anna", "ben", "ben", "carl", "carl"]


def apart(scores: Sequence[float] | np.ndarray, users: Sequence[str]) -> WinRate:
    """The win rate of duels on as many prompts."""
    return win_rate(scores, users, [str(i) for i in range(len(users))])


def test_by_hand() -> None:
    """W = 3, T = 2, L = 1 in 6 duels; people's rates with halves 5/6, 1/4, 1, and without ties 2/3, 0, 1."""
    rate = apart(SCORES, USERS)
    assert (rate.wins, rate.ties, rate.losses, rate.unjudged) == (3, 2, 1, 1)
    assert rate.sample.value == pytest.approx(4 / 6)
    # residuals of people's sums from 2/3 of their duels: 0.5, -5/6, 1/3; squares add up to 19/18; times 3/2; root; / 6
    assert rate.sample_error == pytest.approx(math.sqrt(1.5 * 19 / 18) / 6)
    assert rate.user.value == pytest.approx((5 / 6 + 1 / 4 + 1) / 3)
    assert rate.user_error == pytest.approx(np.std([5 / 6, 1 / 4, 1], ddof=1) / math.sqrt(3))
    assert (rate.strict.value, rate.strict.people) == (pytest.approx((2 / 3 + 0 + 1) / 3), 3)
    assert rate.strict.error == pytest.approx(np.std([2 / 3, 0, 1], ddof=1) / math.sqrt(3))
    assert rate.both_win.value == pytest.approx((3 + 2) / (3 + 1 + 2 * 2))  # as the authors' notebook does
    assert rate.dominant.value == pytest.approx(2 / 3)  # ben is lost
    for interval in (rate.sample, rate.user, rate.both_win, rate.dominant):
        assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0


def test_a_person_is_won_by_whoever_wins_more_often_and_by_both_where_they_win_alike() -> None:
    """The notebook would give ben to the first arm: (0 + 2) / 4 is one half. It won none of his duels, and lost two."""
    scores, users = [0.5, 0.5, 0.0, 0.0, 0.5, 0.5], ["anna"] * 2 + ["ben"] * 4
    rate, other = apart(scores, users), apart(1.0 - np.array(scores), users)
    assert (rate.dominant.value, other.dominant.value) == (0.5, 1.0)


def test_one_person_has_no_error() -> None:
    rate = apart([1.0, 0.0, 1.0], ["anna"] * 3)
    assert rate.sample.value == pytest.approx(2 / 3)
    assert math.isnan(rate.sample_error)
    assert math.isnan(rate.user_error)
    assert (rate.sample.low, rate.sample.high) == (-math.inf, math.inf)


def test_many_duels_of_few_people_say_little() -> None:
    """Two opposed people with 200 duels each: the error is that of two people, not of 400 duels."""
    rate = apart([1.0] * 200 + [0.0] * 200, ["anna"] * 200 + ["ben"] * 200)
    assert rate.sample_error == pytest.approx(0.5)


def test_people_who_get_the_same_answers_are_no_witnesses_for_other_prompts() -> None:
    """Ten people, five prompts, one answer to each for all of them: four wins say as little as those of one person."""
    users = [f"u{i}" for i in range(10) for _ in range(5)]
    scores, prompts = [1.0, 1.0, 1.0, 1.0, 0.0] * 10, list("abcde") * 10
    rate = win_rate(scores, users, prompts)
    assert rate.user.value == pytest.approx(0.8)
    assert (rate.user.low, rate.user.high) == (
        pytest.approx(0.4),
        1.0,
    )  # 1 in 17 draws of five from five has 2 or fewer
    assert apart(scores, users).user.low == pytest.approx(0.8)
    twice = win_rate([*scores, 0.0], [*users, "u0"], [*prompts, "a"])  # u0 asks a prompt twice: all six of theirs count
    assert twice.user.value == pytest.approx((9 * 0.8 + 4 / 6) / 10)


@pytest.mark.parametrize(
    ("scores", "users", "fault"),
    [
        ([1.0], ["anna", "ben"], "differ in number"),
        ([0.7], ["anna"], "got 0.7"),
        ([NAN], ["anna"], "none of 1 duels"),
        ([], [], "none of 0 duels"),
    ],
)
def test_what_makes_no_rate(scores: list[float], users: list[str], fault: str) -> None:
    with pytest.raises(PrmError, match=fault):
        apart(scores, users)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, NAN]), st.sampled_from("abcd")), min_size=1, max_size=25).filter(
        lambda rows: any(s == s for s, _ in rows)
    ),
    st.randoms(use_true_random=False),
)
def test_swapping_the_answers_and_reordering(rows: list[tuple[float, str]], draw: random.Random) -> None:
    scores, users = np.array([s for s, _ in rows]), [u for _, u in rows]
    rate, other = apart(scores, users), apart(1.0 - scores, users)
    assert (rate.wins, rate.ties, rate.losses, rate.unjudged) == (
        other.losses,
        other.ties,
        other.wins,
        other.unjudged,
    )
    for name in ("sample", "user", "both_win"):
        assert getattr(rate, name).value + getattr(other, name).value == pytest.approx(1.0)
    assert rate.sample_error == pytest.approx(other.sample_error, nan_ok=True)
    assert rate.dominant.value + other.dominant.value >= 1.0 - 1e-12
    assert rate.strict.value <= rate.user.value + 1e-12
    mixed = draw.sample(rows, len(rows))
    assert apart([s for s, _ in mixed], [u for _, u in mixed]) == rate or rate.strict.people == 1


CASES = [
    Comparison("anna", "tea?", "x", "y"),
    Comparison("anna", "cake?", "x", "y"),
    Comparison("ben", "tea?", "x", "y"),
]
ARMS = {"brief": ["a", "b", "c"], "long": ["a a", "b b", "c c"], "mixed": ["a a a", "b", "c c c"]}


def test_matrix_by_hand() -> None:
    """Shorter wins. Brief against mixed: anna wins one and ties one (3/4), ben wins (1): 7/8 over people."""
    matrix = win_matrix(by_rule(shorter), CASES, ARMS)
    assert matrix.arms == ("brief", "long", "mixed")
    assert matrix.rates["brief", "long"].sample.value == 1.0
    assert matrix.rates["brief", "mixed"].user.value == pytest.approx(7 / 8)
    assert matrix.rates["mixed", "brief"].user.value == pytest.approx(1 / 8)
    assert matrix.rates["long", "mixed"].sample.value == pytest.approx(2 / 3)  # wins twice, loses on "b"
    assert set(matrix.rates) == {(a, b) for a in ARMS for b in ARMS if a != b}
    header, rows = matrix_table(matrix)
    assert header == ["wins % against", "brief", "long", "mixed"]
    assert rows[0] == ["brief", "", "100.0 ± 0.0", "87.5 ± 12.5"]
    assert rows[2][1] == "12.5 ± 12.5"


def test_matrix_asks_once_for_all_pairs_and_tells_of_the_past() -> None:
    seen: list[list[Duel]] = []

    def judge(duels: list[Duel]) -> JudgedDuels:
        seen.append(list(duels))
        return JudgedDuels(np.full(len(duels), 0.5), disagreed=[0])

    log = [Comparison("anna", "milk?", "yes", "no"), Comparison("ben", "tea?", "yes", "no")]
    matrix = win_matrix(judge, CASES, ARMS, log)  # type: ignore[arg-type]
    assert len(seen) == 1
    assert len(seen[0]) == 9
    assert [d.history for d in seen[0][:3]] == [(log[0],), (log[0],), ()]  # ben's is on the judged prompt
    (note,) = matrix.notes
    assert note.startswith("1 of 9 ")


def test_matrix_needs_two_whole_arms() -> None:
    with pytest.raises(PrmError, match="two arms"):
        win_matrix(by_rule(shorter), CASES, {"a": ["x"] * 3})
    with pytest.raises(PrmError, match="3, 3, 2"):
        win_matrix(by_rule(shorter), CASES, {"a": ["x"] * 3, "b": ["x"] * 2})
