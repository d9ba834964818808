"""Losses, metrics, controls and the simulated people: numbers worked by hand."""

import random
import re
from collections import Counter
from itertools import combinations, pairwise
from math import exp, inf, isnan, log

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from prm import metrics
from prm.data.baselines import (
    LENGTH_WEIGHTS,
    length_margins,
    length_sign,
    length_votes,
    longest,
    shuffled_users,
    votes_of,
)
from prm.data.comparison import Comparison
from prm.data.sources.public.everyday import (
    ATTRIBUTES,
    OPPOSED,
    PEOPLE,
    Answer,
    SimulatedUser,
    load_questions,
    simulate_comparisons,
)
from prm.errors import PrmError
from prm.metrics import (
    Estimate,
    average,
    brier,
    calibration,
    correct,
    crossed_share,
    estimate,
    gap,
    macro,
    nll,
    noise_ceiling,
    over_both,
    per_user,
    ratio,
    share_over_both,
    slopes_within,
    worst_tenth,
)
from prm.training.losses import bradley_terry, personalized_bradley_terry, weighted_mean

# -log sigmoid(2) = log(1 + exp(-2)); a wrong label at margin 2 costs 2 more
HIT, MISS = 0.126928011, 2.126928011


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_bradley_terry_worked_by_hand() -> None:
    """Margins 0, 2, -2 with a sure label; 2 with label 0.75: 0.75 HIT + 0.25 MISS; 2 with a tie: the mean."""
    loss = bradley_terry(vector(0, 2, -2, 2, 2), vector(1, 1, 1, 0.75, 0.5))
    torch.testing.assert_close(loss, vector(log(2), HIT, MISS, 0.626928011, 1.126928011), atol=1e-8, rtol=0)


def test_bradley_terry_slopes_down_by_label_minus_probability() -> None:
    margin = vector(0, 2).requires_grad_()
    bradley_terry(margin, vector(1, 0.75)).sum().backward()
    torch.testing.assert_close(margin.grad, vector(-0.5, 0.880797078 - 0.75), atol=1e-8, rtol=0)


def test_the_two_terms_are_weighed_by_alpha() -> None:
    """alpha = 0.25: 0.25 HIT + 0.75 log 2 = 0.0317320 + 0.5198604; alpha 0 and 1 are one term alone."""
    user, generic, p = vector(2), vector(0), vector(1)
    for alpha, expected in ((0.25, 0.551592388), (0.0, log(2)), (1.0, HIT)):
        loss = personalized_bradley_terry(user, generic, p, alpha)
        torch.testing.assert_close(loss, vector(expected), atol=1e-8, rtol=0)


def test_one_margin_alone_counts_in_full_and_none_is_an_error() -> None:
    p = vector(1)
    torch.testing.assert_close(personalized_bradley_terry(vector(2), None, p, 0.25), vector(HIT), atol=1e-8, rtol=0)
    torch.testing.assert_close(personalized_bradley_terry(None, vector(2), p, 0.25), vector(HIT), atol=1e-8, rtol=0)
    with pytest.raises(ValueError, match="term"):
        personalized_bradley_terry(None, None, p, 0.25)


@pytest.mark.parametrize("p", [1.0, 0.5, 0.75])
def test_extreme_margins_give_finite_losses_and_gradients(p: float) -> None:
    margin = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = personalized_bradley_terry(margin, margin, torch.full((2,), p), 0.25)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([1e4 * (1 - p), 1e4 * p])
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([1 - p, -p])


def test_swapping_the_answers_and_the_label_leaves_the_loss() -> None:
    margin, p = torch.linspace(-5, 5, 21, dtype=torch.float64), torch.linspace(0, 1, 21, dtype=torch.float64)
    torch.testing.assert_close(bradley_terry(-margin, 1 - p), bradley_terry(margin, p))
    np.testing.assert_allclose(nll(-margin, 1 - p), nll(margin, p))


def test_weighted_mean_worked_by_hand() -> None:
    assert weighted_mean(vector(1, 2, 4), vector(1, 1, 2)).item() == (1 + 2 + 8) / 4
    assert weighted_mean(vector(3, 5), vector(0.1, 0.1)).item() == pytest.approx(4)


def test_nll_equals_the_loss_and_stays_finite() -> None:
    np.testing.assert_allclose(nll([0, 2, -2, 2], [1, 1, 1, 0.75]), [log(2), HIT, MISS, 0.626928011], atol=1e-8)
    np.testing.assert_allclose(nll([1e4, -1e4], [1, 1]), [0, 1e4])


def test_correct_counts_a_tied_prediction_half_and_a_tied_label_not_at_all() -> None:
    got = correct([1, -1, 0, 3, 0], [1, 0.7, 0.9, 0.5, 0.5])
    np.testing.assert_array_equal(got, [1, 0, 0.5, np.nan, np.nan])


def test_a_margin_that_is_not_a_number_is_refused_and_not_counted_as_a_tie_or_a_miss() -> None:
    for measure in (correct, nll):
        with pytest.raises(PrmError, match="2 of 3"):
            measure([1.0, float("nan"), float("nan")], [1, 1, 0.5])


def test_macro_counts_people_alike_and_micro_counts_pairs_alike() -> None:
    """ann 3 of 4, bob 0 of 1 with a tie left out, cat only a tie: micro 3/5, macro (3/4 + 0) / 2."""
    values, users = [1, 1, np.nan, 1, 0, 0, np.nan], ["ann", "ann", "bob", "ann", "bob", "ann", "cat"]
    sums, counts = per_user(values, users)
    assert (sums.tolist(), counts.tolist()) == ([3, 0], [4, 1])
    assert estimate(values, users).value == pytest.approx(3 / 5)
    assert average(values, users).value == macro(values, users).value == pytest.approx(3 / 8)


def test_macro_has_the_standard_error_of_people_and_not_of_pairs() -> None:
    """Means 1, 0.5 and 0 over people: deviation 0.5, error 0.5 / sqrt(3); one person has none."""
    values, users = [1, 1, 1, 1, 1, 0, 0], ["ann", "ann", "ann", "ann", "bob", "bob", "cat"]
    got = average(values, users)
    assert (got.value, got.error, got.people) == (pytest.approx(0.5), pytest.approx(0.5 / 3**0.5), 3)
    assert isnan(average([1, 0], ["ann", "ann"]).error)
    assert macro(values, users).low == 0
    assert macro(values, users).high == 1


def test_the_worst_tenth_is_at_least_one_person_and_never_one_with_few_judgements() -> None:
    """21 people: three are the worst tenth. A person with 9 wrong judgements of 9 is noise and left out."""
    users = np.repeat([f"u{i:02}" for i in range(21)], 20)
    right = np.concatenate([[1.0] * k + [0.0] * (20 - k) for k in (10, 4, 6, *[15] * 18)])
    assert worst_tenth(right, users) == pytest.approx((10 + 4 + 6) / 60)
    noisy = np.concatenate([right, [0.0] * 9]), np.concatenate([users, ["few"] * 9])
    assert worst_tenth(*noisy) == pytest.approx((10 + 4 + 6) / 60)
    assert worst_tenth(*noisy, least=1) == pytest.approx((0 + 4 + 6) / (3 * 20), abs=1e-9)
    assert worst_tenth(right[:20], users[:20]) == 0.5
    assert isnan(worst_tenth([1.0] * 9, ["ann"] * 9))


def test_brier_worked_by_hand() -> None:
    """sigmoid(log 3) = 3/4: (3/4 - 1)^2 for a sure label, 0 for one of 3/4, 1/16 for a tie; 1/4 says nothing."""
    np.testing.assert_allclose(brier([log(3)] * 3 + [0, -1e4], [1, 0.75, 0.5, 1, 1]), [1 / 16, 0, 1 / 16, 1 / 4, 1])


def test_calibration_worked_by_hand() -> None:
    """Four pairs at 3/4, three right: no error. Four at 9/10, two right: 0.4, over half of all pairs 0.2.

    By chance a bin's sum of four is off by sqrt(2 / pi 4 q (1 - q)).
    """
    margin = np.array([log(3), log(3), log(3), -log(3), log(9), -log(9), log(9), -log(9)])
    got = calibration(margin, np.ones(8), bins=2)
    assert [(b.pairs, b.predicted, b.observed) for b in got.bins] == [
        (4, pytest.approx(0.75), pytest.approx(0.75)),
        (4, pytest.approx(0.9), pytest.approx(0.5)),
    ]
    assert (got.predicted, got.observed) == pytest.approx(((0.75 + 0.9) / 2, (0.75 + 0.5) / 2))
    assert got.error == pytest.approx(0.2)
    assert got.by_chance == pytest.approx(sum((2 / np.pi * 4 * q * (1 - q)) ** 0.5 for q in (0.75, 0.9)) / 8)
    assert isnan(calibration([], []).error)


def test_intervals_of_bins_are_binomial() -> None:
    """Ten of ten: from 0.025 ** 0.1 on; three of four as scipy has it; with a tie, between its neighbours."""
    for won, n in ((10, 10), (0, 10), (3, 4), (5, 10)):
        (got,) = calibration(np.ones(n), np.arange(n) < won, bins=1).bins
        exact = stats.binomtest(won, n).proportion_ci(0.95, "exact")
        assert (got.low, got.high) == pytest.approx((exact.low, exact.high))
    (all_won,) = calibration(np.ones(10), np.ones(10), bins=1).bins
    assert (all_won.low, all_won.high) == (pytest.approx(0.025**0.1), 1)
    less, tie, more = (calibration(np.ones(4), [1, 1, p, 0], bins=1).bins[0] for p in (0, 0.5, 1))
    assert less.low < tie.low < more.low
    assert less.high < tie.high < more.high


def test_calibration_is_that_of_every_pair_in_both_orders() -> None:
    """And so neither the order of the pairs nor that of the answers matters."""
    draw = np.random.default_rng(0)
    margin, p = draw.normal(0, 2, 400), draw.choice([1.0, 0.8, 0.5], 400)
    got = calibration(margin, p)
    both, labels = np.concatenate([margin, -margin]), np.concatenate([p, 1 - p])
    order = np.argsort(both)
    error = sum(abs((1 / (1 + np.exp(-both[part])) - labels[part]).sum()) for part in np.array_split(order, 20))
    assert got.error == pytest.approx(error / 800)
    shuffled = draw.permutation(400)
    assert calibration(margin[shuffled], p[shuffled]).error == pytest.approx(got.error)
    assert calibration(-margin, 1 - p).error == pytest.approx(got.error)


def test_equal_predictions_share_a_bin_whatever_their_order() -> None:
    margin = np.array([1.0] * 50 + [2.0] * 50)
    p = np.array([1.0, 0.9] * 50)
    got = calibration(margin, np.sort(p))
    assert [b.pairs for b in got.bins] == [50, 50]
    assert calibration(margin[::-1], np.sort(p)[::-1]).error == got.error


def test_the_error_by_chance_is_that_of_labels_drawn_from_the_predictions() -> None:
    draw = np.random.default_rng(1)
    margin = draw.normal(0, 1.5, 500)
    p = 1 / (1 + np.exp(-margin))
    found = [calibration(margin, (draw.random(500) < p).astype(float)) for _ in range(400)]
    assert np.mean([c.error for c in found]) == pytest.approx(found[0].by_chance, rel=0.05)
    too_sure = calibration(3 * margin, (draw.random(500) < p).astype(float))
    assert too_sure.error > 3 * too_sure.by_chance


def test_a_gap_is_drawn_over_the_people_of_both_groups() -> None:
    """Deviation 0.1 in 40 and in 10 people: standard error 0.1 sqrt(1/40 + 1/10) = 0.0354."""
    majority, minority = np.tile([0.7, 0.9], 20), np.tile([0.4, 0.6], 5)
    got = gap(majority, minority)
    assert got.value == pytest.approx(0.3)
    assert got.high - got.low == pytest.approx(2 * 1.96 * 0.0354, rel=0.1)
    assert gap([0.7, 0.9], [0.5]).value == pytest.approx(0.3)
    assert gap([0.7, 0.9], [0.5]).high == inf


def test_nothing_to_count_is_not_a_number_and_does_not_crash() -> None:
    assert isnan(average([np.nan], ["ann"]).value)
    nothing = estimate([np.nan, np.nan], ["ann", "bob"])
    assert isnan(nothing.value)
    assert (nothing.low, nothing.high) == (-inf, inf)


def test_one_person_gives_an_infinite_interval() -> None:
    one = estimate([1, 0, 1, 1], ["ann"] * 4)
    assert (one.value, one.low, one.high) == (0.75, -inf, inf)


def test_an_interval_holds_its_value_and_is_the_same_under_the_same_seed() -> None:
    draw = np.random.default_rng(0)
    for size in (4, 30, 200):
        values, users = draw.random(size), draw.integers(0, 2 + size // 4, size).astype(str)
        got = estimate(values, users)
        assert got.low < got.value < got.high
        assert got == estimate(values, users)
        assert got.value == pytest.approx(values.mean())


def test_people_are_resampled_and_not_their_pairs() -> None:
    """20 people of 100 pairs, all right for ten and all wrong for ten: standard error 0.5 / sqrt(20) = 0.112."""
    values, users = np.repeat([1.0, 0.0] * 10, 100), np.repeat([f"u{i}" for i in range(20)], 100)
    people = estimate(values, users)
    assert people.high - people.low == pytest.approx(2 * 1.96 * 0.112, rel=0.2)
    pairs = estimate(values, np.arange(2000).astype(str))  # 0.5 / sqrt(2000) = 0.0112
    assert pairs.high - pairs.low == pytest.approx(2 * 1.96 * 0.0112, rel=0.2)


def test_a_person_is_drawn_with_sum_and_count_together() -> None:
    """Everyone is right in all pairs, one of them far more often: no draw of people gives another mean."""
    sure = estimate([1.0] * 103, ["ann"] * 100 + ["bob", "cat", "dan"])
    assert (sure.value, sure.low, sure.high) == (1, 1, 1)


def test_the_noise_ceiling_is_the_mean_of_the_likelier_side() -> None:
    assert noise_ceiling([0.9, 0.2, 0.5, 1.0]) == pytest.approx((0.9 + 0.8 + 0.5 + 1.0) / 4)


def pair(user: str, chosen: int, rejected: int, p_chosen: float = 1.0) -> Comparison:
    """Answers of so many words."""
    return Comparison(user, "q", " ".join(["c"] * chosen), " ".join(["r"] * rejected), p_chosen=p_chosen)


def test_length_controls_worked_by_hand() -> None:
    """ann votes long, long, short; bob short with p 0.75 (a half vote) and once between equals."""
    train = [pair("ann", 5, 2), pair("ann", 3, 1), pair("ann", 1, 9), pair("bob", 1, 4, 0.75), pair("bob", 2, 2)]
    votes = length_votes(train)
    signs = votes["length_sign"]
    assert signs == pytest.approx({"ann": 1, "bob": -0.5, "": 1 + 1 - 1 - 0.5 + 0})
    assert votes["length_count"] == {"ann": 3, "bob": 1, "": 4}
    again = length_votes([pair("bob", 9, 1), pair("cat", 1, 2)], votes)
    assert again["length_sign"] == pytest.approx({"ann": 1, "bob": 0.5, "cat": -1, "": 0.5})
    assert again["length_count"] == {"ann": 3, "bob": 2, "cat": 1, "": 6}
    assert (signs["bob"], votes["length_count"]["bob"]) == (-0.5, 1)
    assert "length_count" not in length_votes(train, {"length_sign": signs})  # of a run without counts
    assert votes_of(votes, lambda user: user == "bob") == {"length_sign": {"bob": -0.5}, "length_count": {"bob": 1}}
    test = [pair("ann", 4, 1), pair("bob", 4, 1), pair("cat", 1, 6)]
    assert longest(test).tolist() == [3, 3, -5]
    assert length_sign(test, signs).tolist() == [3, -3, -5]  # everyone together leans to the long: cat too
    assert length_sign(test, {"": -0.1}).tolist() == [-3, -3, 5]
    assert length_sign(test, {}).tolist() == [0, 0, 0]
    # with a weight of 1: ann 2 of 3, bob 0.25 of 1, all 2.25 of 4 and one more each way
    rate = np.array([(2 + 3.25 / 6) / 4, (0.25 + 3.25 / 6) / 2, 3.25 / 6])
    expected = np.array([1, 1, -1]) * np.log(rate / (1 - rate))
    assert length_margins([*test, pair("ann", 2, 2)], votes, 1.0) == pytest.approx([*expected, 0])


@pytest.mark.parametrize(
    ("users", "weight"),
    [
        ([(9, 10), (1, 10), (10, 10), (0, 10)], 1.0),  # opposed
        ([(5, 10)] * 4, 1e9),  # alike
        ([(8, 10), (5, 10), (6, 10), (3, 10), (0, 0)], 30.0),
    ],
)
def test_the_weight_of_all_users_is_the_likeliest_under_a_beta_binomial(
    users: list[tuple[int, int]], weight: float
) -> None:
    """As scipy's; the likelihood of the counts differs from that of the choices by the same factor for each weight."""
    log = [pair(f"u{i}", *((2, 1) if j < k else (1, 2))) for i, (k, n) in enumerate(users) for j in range(n)]
    rate = (sum(k for k, _ in users) + 1) / (len(log) + 2)
    by_weight = {
        w: sum(stats.betabinom.logpmf(k, n, w * rate, w * (1 - rate)) for k, n in users) for w in LENGTH_WEIGHTS[:-1]
    } | {1e9: sum(stats.binom.logpmf(k, n, rate) for k, n in users)}
    assert max(by_weight, key=by_weight.__getitem__) == weight
    assert length_margins(log, length_votes(log)).tolist() == length_margins(log, length_votes(log), weight).tolist()


@pytest.mark.parametrize("n", [2, 3, 12])
def test_shuffled_users_is_a_permutation_that_leaves_nobody_in_place(n: int) -> None:
    users = [f"u{i}" for i in range(n)]
    for seed in range(20):
        taken = shuffled_users(users * 3, seed)
        assert sorted(taken) == sorted(taken.values()) == sorted(users)
        assert all(user != other for user, other in taken.items())
    if n == 12:
        assert shuffled_users(users, 0) == shuffled_users(users[::-1], 0) != shuffled_users(users, 1)


QUESTIONS = load_questions()
ANSWERS = [answer for question in QUESTIONS for answer in question.answers]
LIST_MARK = re.compile(r"^\s*(\d+[.)]|[-*•])\s", re.MULTILINE)
CONTRACTION = re.compile(
    r"\b(\w+n['\u2019]t|\w+['\u2019](re|ll|ve|m|d)|(it|that|there|here|what|let|he|she|who|how|where)['\u2019]s)\b",
    re.IGNORECASE,
)


def test_sixty_questions_have_five_answers_each_and_no_text_twice() -> None:
    assert (len(QUESTIONS), len({q.prompt for q in QUESTIONS})) == (60, 60)
    assert {len(q.answers) for q in QUESTIONS} == {5}
    assert len({a.text for a in ANSWERS}) == 300


def test_attributes_agree_with_the_texts() -> None:
    for answer in ANSWERS:
        n_words = len(answer.text.split())
        assert 20 <= n_words <= 90, answer.text
        assert set(answer.attributes) == set(ATTRIBUTES)
        assert answer.attributes["length"] == pytest.approx(n_words / 20)
        assert {answer.attributes[name] for name in ATTRIBUTES[1:]} <= {0.0, 1.0}
        assert bool(LIST_MARK.search(answer.text)) == bool(answer.attributes["list"]), answer.text
        assert not (answer.attributes["formal"] and CONTRACTION.search(answer.text)), answer.text
    assert any(CONTRACTION.search(answer.text) for answer in ANSWERS)  # the pattern finds what it looks for


@pytest.mark.parametrize("within", [False, True], ids=["over all answers", "within questions"])
def test_attributes_hardly_correlate(within: bool) -> None:
    table = np.array([[[a.attributes[name] for name in ATTRIBUTES] for a in q.answers] for q in QUESTIONS])
    if within:
        table = table - table.mean(axis=1, keepdims=True)
    correlation = np.corrcoef(table.reshape(-1, 6).T)
    assert np.abs(correlation[~np.eye(6, dtype=bool)]).max() < 0.3


def test_opposed_people_want_exactly_opposite_amounts_of_one_thing() -> None:
    person = {p.name: p.weights for p in PEOPLE}
    assert len(person) == len(PEOPLE)
    assert len({attribute for _, _, attribute in OPPOSED}) >= 3
    for less, more, attribute in OPPOSED:
        assert person[less][attribute] == -person[more][attribute] < 0
        others = [name for name in ATTRIBUTES if name != attribute]
        assert [person[less][name] for name in others] == [person[more][name] for name in others]


def test_a_preference_is_the_sigmoid_of_the_difference_in_utility() -> None:
    someone = SimulatedUser("x", "", {"length": -0.5, "warm": 3.0})
    short, warm = Answer("", {"length": 1.0, "warm": 0.0}), Answer("", {"length": 3.0, "warm": 1.0})
    assert (someone.utility(short), someone.utility(warm)) == (-0.5, 1.5)
    assert someone.prefers(warm, short) == pytest.approx(exp(-HIT))  # sigmoid(2)
    assert someone.prefers(short, warm) == pytest.approx(1 - exp(-HIT))


def test_everyone_judges_every_pair_once_with_their_own_probability() -> None:
    people = PEOPLE[:3]
    by_text = {a.text: a for a in ANSWERS}
    judged = list(simulate_comparisons(QUESTIONS[:7], people, seed=0))
    seen = Counter((c.user_id, c.prompt, frozenset([c.chosen, c.rejected])) for c, _ in judged)
    pairs = [(q.prompt, frozenset([a.text, b.text])) for q in QUESTIONS[:7] for a, b in combinations(q.answers, 2)]
    assert seen == Counter((p.name, *asked) for p in people for asked in pairs)
    tastes = {p.name: p for p in people}
    for c, p_chosen in judged:
        assert p_chosen == pytest.approx(tastes[c.user_id].prefers(by_text[c.chosen], by_text[c.rejected]))


def test_labels_come_as_often_as_their_probability_says() -> None:
    """Per bin of P(first answer preferred), over four seeds: within four standard errors."""
    first = {a.text: i for i, a in enumerate(ANSWERS)}
    rows = [row for seed in range(4) for row in simulate_comparisons(QUESTIONS, PEOPLE, seed)]
    took_first = np.array([first[c.chosen] < first[c.rejected] for c, _ in rows])
    p = np.where(took_first, [p for _, p in rows], [1 - p for _, p in rows])
    for low, high in pairwise(np.linspace(0, 1, 11)):
        inside = (p >= low) & (p <= high)
        error = np.sqrt((p * (1 - p))[inside].sum()) / inside.sum()
        assert inside.sum() > 300
        assert abs(took_first[inside].mean() - p[inside].mean()) < 4 * error


def test_judgements_depend_on_the_seed_alone() -> None:
    random.seed(1)
    once = list(simulate_comparisons(QUESTIONS[:9], PEOPLE, seed=3))
    random.seed(2)
    assert list(simulate_comparisons(QUESTIONS[:9], PEOPLE, seed=3)) == once
    assert list(simulate_comparisons(QUESTIONS[:9], PEOPLE, seed=4)) != once


def test_many_groups_thrown_together_have_the_interval_of_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 5, 6000).astype(float)
    sums = draw.binomial(counts.astype(int), 0.6).astype(float)
    blocks = ratio(sums, counts)
    monkeypatch.setattr(metrics, "_GROUPS", len(sums))
    groups = ratio(sums, counts)
    assert blocks != groups
    assert blocks.value == pytest.approx(groups.value)
    assert blocks.high - blocks.low == pytest.approx(groups.high - groups.low, rel=0.1)


def test_people_who_get_the_same_answers_are_no_independent_witnesses() -> None:
    """Ten people, 25 prompts, differences of two draws of one policy, which all people see alike: nothing is there."""
    users, prompts = np.repeat(np.arange(10), 25), np.tile(np.arange(25), 10)
    found: dict[str, list[bool]] = {"over people": [], "over both": []}
    for seed in range(100):
        draw = np.random.default_rng(seed)
        values = draw.normal(size=25)[prompts] + 0.1 * draw.normal(size=250)
        for name, interval in (("over people", macro(values, users)), ("over both", over_both(values, users, prompts))):
            found[name].append(interval.low <= 0.0 <= interval.high)
    assert np.mean(found["over people"]) < 0.5
    assert np.mean(found["over both"]) >= 0.9


def test_prompts_asked_by_one_person_each_are_drawn_with_their_person() -> None:
    values, users = [1.0, 3.0, 5.0, 4.0], ["a", "a", "b", "c"]
    assert over_both(values, users, ["p", "q", "r", "s"]) == macro(values, users)
    shared = over_both(values, users, ["p", "q", "p", "p"])  # everybody's own mean: 2, 5, 4
    assert shared.value == pytest.approx(11 / 3)
    assert 1.0 <= shared.low < shared.value < shared.high <= 5.0


def test_a_full_table_is_that_of_plain_products() -> None:
    """Drawn people and prompts are weights on both sides of the table, [Owen 2007, section 3]."""
    table = np.random.default_rng(0).normal(size=(4, 6))
    (one,) = metrics.crossed(table[None], seed=3)
    draw = np.random.default_rng(3)
    people, prompts = (draw.multinomial(n, np.full(n, 1 / n), metrics._RESAMPLES) / n for n in (4, 6))
    means = [float(a @ table @ b) for a, b in zip(people, prompts, strict=True)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert (one.value, one.low, one.high) == pytest.approx((table.mean(), low, high))


def test_slopes_by_hand() -> None:
    """Two groups with levels of their own, and y = 3 x - 2 z within each."""
    x = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 3.0], [5.0, 0.0], [6.0, 1.0]])
    levels = np.array([10.0, 10.0, 10.0, -4.0, -4.0])
    y = (x @ [3.0, -2.0] + levels)[:, None]
    assert slopes_within(x, y, [0, 0, 0, 1, 1]) == pytest.approx(np.array([[3.0], [-2.0]]))


def test_shares_are_ratios_of_means_over_users_and_prompts() -> None:
    """Users weigh alike, whatever their number of prompts; the same numbers in a table and in rows."""
    parts, whole = [[[1.0, 2.0], [0.0, np.nan]]], [[[2.0, 4.0], [5.0, np.nan]]]
    (share,) = crossed_share(parts, whole)
    assert share is not None
    assert share.value == pytest.approx((1.5 + 0.0) / (3.0 + 5.0))
    assert (share.low, share.high) == (0.0, 0.5)  # the second user alone, and the first
    rows = share_over_both([[1.0, 2.0, 0.0]], [2.0, 4.0, 5.0], ["a", "a", "b"], ["p", "q", "p"])
    assert rows == [share]
    (apart,) = share_over_both([[1.0, 2.0, 0.0]], [2.0, 4.0, 5.0], ["a", "a", "b"], ["p", "q", "r"])
    assert apart is not None
    assert (apart.value, apart.low, apart.high) == (share.value, 0.0, 0.5)
    assert share_over_both([[1.0, 2.0]], [2.0, 4.0], ["a", "a"], ["p", "q"]) == [Estimate(0.5, -np.inf, np.inf)]
    assert crossed_share([[[1.0]]], [[[4.0]]]) == [Estimate(0.25, -np.inf, np.inf)]


def test_there_is_no_share_of_nothing() -> None:
    """Of 0, of less than 0, of infinity; each part has its own whole. Resamples without a whole are left out."""
    parts, whole = np.ones((4, 2, 2)), np.array([0.0, -1.0, np.inf, 2.0])[:, None, None] * np.ones((4, 2, 2))
    assert crossed_share(parts, whole) == [None, None, None, Estimate(0.5, 0.5, 0.5)]
    half = np.array([[[1.0], [0.0]]])  # one user of two has headroom, and takes all of it
    assert crossed_share(half, half) == [Estimate(1.0, 1.0, 1.0)]
