"""Who gains and who loses: tests over prompts, adjusted for the number of people."""

from math import inf, isnan, log

import numpy as np
import pytest
from scipy import stats

from prm.evaluation.audit.per_user import UserResult, UserResults, user_results
from prm.metrics import Array


def found(rows: list[tuple[str, str, float, float, float]]) -> UserResults:
    """From (user, prompt, personal margin, uniform margin, p)."""
    users, prompts, personal, uniform, p = zip(*rows, strict=True)
    return user_results(np.array(personal), np.array(uniform), np.array(p), users, prompts)


def one(people: UserResults, user: str) -> UserResult:
    return next(person for person in people.people if person.user == user)


def right_for(user: str, n: int, personal: float, uniform: float) -> list[tuple[str, str, float, float, float]]:
    return [(user, f"q{i}", personal, uniform, 1.0) for i in range(n)]


def test_sign_test_worked_by_hand() -> None:
    """Ten prompts one way: p = 1 / 1024, first of three people, so q = 3 times that. The person who loses is named.

    Six of twelve: p = (1 + C(12, 6) / 4096) / 2 = 0.6128, second of three.
    """
    rows = [*right_for("win", 10, 1, -1), *right_for("lose", 10, -1, 1)]
    rows += [("mixed", f"q{i}", 1 if i < 6 else -1, -1 if i < 6 else 1, 1.0) for i in range(12)]
    people = found(rows)
    win, lose, mixed = (one(people, user) for user in ("win", "lose", "mixed"))
    assert (win.better, win.worse, win.picks_verdict) == (10, 0, "gains")
    assert win.picks_q == lose.picks_q == pytest.approx(3 / 1024)
    assert (lose.gain, lose.picks_verdict, lose.nats_verdict) == (-1, "loses", "loses")
    assert (mixed.better, mixed.worse, mixed.picks_verdict) == (6, 6, "unclear")
    assert mixed.picks_q == pytest.approx((1 + 924 / 4096) / 2 * 3 / 2)
    assert [person.user for person in people.people] == ["lose", "mixed", "win"]
    assert people.losers == (lose,)
    assert people.worst == lose
    assert people.count("picks") == {"gains": 1, "loses": 1, "unclear": 1}


def test_judgements_of_one_prompt_are_one_piece_of_evidence() -> None:
    people = found([*right_for("many", 12, 1, -1), *[("once", "q", 1.0, -1.0, 1.0)] * 12])
    assert one(people, "many").picks_verdict == "gains"
    once = one(people, "once")
    assert (once.gain, once.better, once.picks_verdict, once.nats_verdict) == (1, 1, "unclear", "unclear")
    assert once.nats.high == inf


def test_nats_are_tested_by_t_over_prompts() -> None:
    """With one judgement a prompt it is the usual t test, one-sided."""
    draw = np.random.default_rng(0)
    margins = draw.normal(0.3, 1, (2, 40))
    people = found([("ann", f"q{i}", *margins[:, i], 1.0) for i in range(40)])
    saved = np.log1p(np.exp(-margins[1])) - np.log1p(np.exp(-margins[0]))
    assert saved.mean() < 0
    ann = one(people, "ann")
    assert ann.nats_q == pytest.approx(stats.ttest_1samp(saved, 0, alternative="less").pvalue)
    ends = stats.ttest_1samp(saved, 0).confidence_interval(0.95)
    assert (ann.nats.low, ann.nats.value, ann.nats.high) == pytest.approx((ends.low, saved.mean(), ends.high))


def test_users_with_few_comparisons_have_no_verdict_and_stand_last() -> None:
    people = found([*right_for("few", 9, -1, 1), *right_for("enough", 10, 1, 1)])
    few = one(people, "few")
    assert (few.gain, few.picks_q, few.picks_verdict, few.nats_verdict) == (-1, 1, "unclear", "unclear")
    assert people.worst == one(people, "enough")
    assert people.enough == (one(people, "enough"),)
    assert people.untested == 1


def test_chance_names_hardly_anybody_among_many() -> None:
    """300 people for whom the models differ by coin flips: without care some fifteen would be named."""
    draw = np.random.default_rng(0)
    people = found([
        (f"u{u}", f"q{i}", *draw.normal(0, 1, 2), 1.0) for u in range(300) for i in range(20)
    ])  # fmt: skip
    clear = [p for p in people.people if "unclear" not in (p.picks_verdict, p.nats_verdict)]
    raw: list[Array] = [stats.ttest_1samp(draw.normal(0, 1, 20), 0).pvalue for _ in range(300)]
    assert sum(p < 0.05 for p in raw) > 5
    assert len(clear) <= 1


def test_many_who_gain_let_nobody_lose_by_chance() -> None:
    """Gains and losses in one list: q of the 300 who gain would let 2.5% of the 300 others be said to lose."""
    draw = np.random.default_rng(0)
    people = found([
        *(row for u in range(300) for row in right_for(f"gain{u:03}", 10, 1, -1)),
        *((f"u{u:03}", f"q{i}", *draw.normal(0, 1, 2), 1.0) for u in range(300) for i in range(20)),
    ])  # fmt: skip
    assert people.count("nats")["gains"] >= 300
    assert len(people.losers) <= 1


def test_people_stand_by_nats_the_greatest_loss_first() -> None:
    people = found([*right_for("a", 10, 1, 1.5), *right_for("b", 10, 0.5, 2), *right_for("c", 10, 2, 1)])
    assert [person.user for person in people.people] == ["b", "a", "c"]


def test_ties_count_in_nats_alone() -> None:
    people = found([("tied", f"q{i}", 2.0, 0.0, 0.5) for i in range(12)])
    tied = one(people, "tied")
    assert (tied.comparisons, isnan(tied.gain), tied.better + tied.worse) == (0, True, 0)
    assert tied.nats.value == pytest.approx(log(2) - 1.126928011)
    assert people.worst is None
