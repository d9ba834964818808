"""Lemmas 3.2 and 3.3: by hand, on random graphs of votes and groups, and by the head that people train."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prm.errors import PrmError
from prm.experiments.theory import deviations, fit_rewards, fitted_preferences, is_forest, population, vote_shares
from prm.metrics import Array
from prm.training.heads.objective import PairFeatures, Penalty, fit_head, margins
from prm.users.kinds import Uniform

CYCLE = [[0, 3, 1], [1, 0, 5], [2, 1, 0]]  # A over B 3 to 1, B over C 5 to 1, C over A 2 to 1
COUNTS = st.integers(1, 50)


def misses(wins: Array) -> Array:
    """Votes by which the fit misses each pair, [k, k]; 0 where there were none."""
    n = wins + wins.T
    return np.where(n > 0, wins - n * np.nan_to_num(fitted_preferences(wins)), 0.0)


@st.composite
def forests(draw: st.DrawFn, least: int = 1) -> Array:
    """Votes on up to eight answers, each compared with at most one of those before it."""
    k = draw(st.integers(1, 8))
    wins = np.zeros((k, k))
    for i in range(1, k):
        parent = draw(st.integers(-1, i - 1))
        if parent >= 0:
            wins[i, parent], wins[parent, i] = draw(COUNTS), draw(st.integers(least, 50))
            if draw(st.booleans()):
                wins[[i, parent], [parent, i]] = wins[[parent, i], [i, parent]]
    return wins


@st.composite
def cycles(draw: st.DrawFn, least: int = 1) -> Array:
    """Votes on three to six answers in a ring."""
    k = draw(st.integers(3, 6))
    wins = np.zeros((k, k))
    for i in range(k):
        wins[i, (i + 1) % k], wins[(i + 1) % k, i] = draw(COUNTS), draw(st.integers(least, 50))
    return wins


@st.composite
def tables(draw: st.DrawFn) -> Array:
    """Any votes at all on up to six answers, many of them unanimous or absent."""
    k = draw(st.integers(2, 6))
    counts = draw(st.lists(st.sampled_from([0, 0, 1, 2, 9]), min_size=k * k, max_size=k * k))
    wins = np.array(counts, np.float64).reshape(k, k)
    np.fill_diagonal(wins, 0)
    return wins


def test_three_of_four_votes_are_a_margin_of_log_3() -> None:
    rewards, parts = fit_rewards([[0, 3], [1, 0]])
    assert rewards.tolist() == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-12)
    assert parts[0] == parts[1]


def test_a_cycle_by_hand() -> None:
    """Rewards log 2, log 2, 0: of 4, 6 and 3 votes they expect 2, 4 and 1 where 3, 5 and 2 were cast.

    First-order condition: each answer wins one vote more than expected against one neighbour, one less against the
    other. The votes prefer C to A, the fit A to C.
    """
    rewards, _ = fit_rewards(CYCLE)
    np.testing.assert_allclose(rewards, np.array([1, 1, -2]) * math.log(2) / 3, atol=1e-12)
    fitted = fitted_preferences(CYCLE)
    np.testing.assert_allclose([fitted[0, 1], fitted[1, 2], fitted[2, 0]], [1 / 2, 2 / 3, 1 / 3], atol=1e-12)
    assert not is_forest(CYCLE)
    assert vote_shares(CYCLE)[2, 0] > 0.5 > fitted[2, 0]


@settings(derandomize=True, deadline=None)
@given(forests())
def test_on_a_forest_the_fit_is_the_vote_share(wins: Array) -> None:
    assert is_forest(wins)
    np.testing.assert_allclose(fitted_preferences(wins), vote_shares(wins), atol=1e-6)


@settings(derandomize=True, deadline=None)
@given(cycles())
def test_on_a_cycle_every_pair_is_missed_by_the_same_number_of_votes(wins: Array) -> None:
    """An answer's misses sum to 0 (first-order condition); nothing is missed only where the log odds sum to 0."""
    assert not is_forest(wins)
    missed = misses(wins)
    np.testing.assert_allclose(missed.sum(1), 0.0, atol=1e-6)
    k = len(wins)
    around = np.array([missed[i, (i + 1) % k] for i in range(k)])
    np.testing.assert_allclose(around, around[0], atol=1e-6)
    odds = sum(math.log(wins[i, (i + 1) % k] / wins[(i + 1) % k, i]) for i in range(k))
    assert np.sign(np.round(around[0], 6)) == np.sign(np.round(odds, 9))


@settings(derandomize=True, deadline=None)
@given(tables(), st.randoms(use_true_random=False), st.integers(1, 1000))
def test_names_of_answers_scale_of_votes_and_direction_change_nothing(wins: Array, draw: object, scale: int) -> None:
    fitted = fitted_preferences(wins)
    order = list(range(len(wins)))
    draw.shuffle(order)  # type: ignore[attr-defined]
    np.testing.assert_allclose(fitted_preferences(wins[np.ix_(order, order)]), fitted[np.ix_(order, order)], atol=1e-6)
    np.testing.assert_allclose(fitted_preferences(scale * wins), fitted, atol=1e-6)
    np.testing.assert_allclose(fitted_preferences(wins.T), 1.0 - fitted, atol=1e-6)


@settings(derandomize=True, deadline=None)
@given(tables())
def test_the_first_order_condition_holds_for_any_votes(wins: Array) -> None:
    np.testing.assert_allclose(misses(wins).sum(1), 0.0, atol=1e-6)


@settings(derandomize=True, deadline=None)
@given(forests(least=0))
def test_a_unanimous_vote_on_a_forest_is_met_in_the_limit(wins: Array) -> None:
    rewards, parts = fit_rewards(wins)
    assert np.isfinite(rewards).all()
    assert len(set(parts)) == len(wins) - np.triu((wins > 0) & (wins.T > 0)).sum()
    np.testing.assert_allclose(fitted_preferences(wins), vote_shares(wins), atol=1e-6)


def test_a_unanimous_vote_on_a_cycle_is_not_met() -> None:
    """A over B 4 to 0, B over C and C over A 2 to 2: C leads back to A, so the best margin is finite."""
    wins = np.array([[0.0, 4, 2], [0, 0, 2], [2, 2, 0]])
    assert len(set(fit_rewards(wins)[1])) == 1
    assert 0.5 < fitted_preferences(wins)[0, 1] < 0.99


def test_forests_are_distinguished_from_cycles() -> None:
    assert is_forest(np.zeros((1, 1)))
    assert is_forest(np.zeros((4, 4)))
    assert is_forest([[0, 3], [0, 0]])
    assert is_forest([[0, 0], [3, 0]])
    assert not is_forest([[0, 0, 0], [3, 0, 0], [2, 1, 0]])
    two_trees_and_a_ring = np.zeros((7, 7))
    two_trees_and_a_ring[:3, :3] = CYCLE
    two_trees_and_a_ring[3, 4] = two_trees_and_a_ring[5, 6] = 1
    assert not is_forest(two_trees_and_a_ring)


@pytest.mark.parametrize("wins", [[[0, 1]], [0, 1], [[0, -1], [1, 0]], [[1, 2], [3, 0]], [[0, math.nan], [1, 0]]])
def test_what_is_no_table_of_votes_is_refused(wins: list[Any]) -> None:
    for take in (vote_shares, is_forest, fit_rewards, fitted_preferences):
        with pytest.raises(PrmError, match="square"):
            take(wins)


def test_votes_too_unequal_to_be_weighed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    many: list[list[float]] = [[0, 1e6, 0], [1, 0, 1], [0, 1e6, 0]]
    np.testing.assert_allclose(fitted_preferences(many), vote_shares(many), rtol=1e-6)
    with pytest.raises(PrmError, match=r"1e\+06.* 1e\+07"):
        fit_rewards([[0.0, 1e7], [1.0, 0.0]])
    monkeypatch.setattr("prm.experiments.theory._MAX_STEPS", 2)
    with pytest.raises(PrmError, match=r"3 .* 2 steps"):
        fit_rewards(CYCLE)


def trained(wins: Array) -> Array:
    """sigma of the margins [k, k] of the head that `prm train` fits: uniform, each answer a feature of its own."""
    k = len(wins)
    chosen, rejected = (torch.from_numpy(x) for x in np.nonzero(wins))
    ones = torch.ones(len(chosen))
    weight = torch.from_numpy(wins[wins > 0]).float()
    model = Uniform(1, 1, k)
    votes = PairFeatures(torch.eye(k), chosen, rejected, torch.zeros_like(chosen), ones, weight)
    fit_head(model, votes, alpha=0.5, penalty=Penalty(0.0, 0.0))
    every = torch.cartesian_prod(torch.arange(k), torch.arange(k))
    pairs = PairFeatures(
        torch.eye(k), every[:, 0], every[:, 1], torch.zeros(k * k), torch.ones(k * k), torch.ones(k * k)
    )
    with torch.no_grad():
        return margins(model, pairs).sigmoid().view(k, k).numpy().astype(np.float64)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.one_of(forests(), cycles()))
def test_the_head_that_is_trained_learns_the_vote_shares_on_a_forest_and_the_fit_on_a_cycle(wins: Array) -> None:
    assume(wins.any())
    compared = wins > 0
    expected = vote_shares(wins) if is_forest(wins) else fitted_preferences(wins)
    np.testing.assert_allclose(trained(wins)[compared], expected[compared], atol=2e-3)


def test_two_groups_by_hand() -> None:
    """Seven of ten like the first answer with 0.9, three with 0.1: 0.66 in all, off by 0.24 and 0.56."""
    assert float(population([0.7, 0.3], [0.9, 0.1])) == pytest.approx(0.66)
    assert deviations([0.7, 0.3], [0.9, 0.1]).tolist() == pytest.approx([0.24, 0.56])


SHARES = st.integers(50, 100).map(lambda percent: percent / 100)
RATES = st.integers(0, 20).map(lambda twentieths: twentieths / 20)


@settings(derandomize=True, deadline=None)
@given(SHARES, RATES, RATES)
def test_the_minority_deviates_more_strictly_only_where_groups_and_tastes_differ(
    share: float, p: float, q: float
) -> None:
    majority, minority = deviations([share, 1.0 - share], [p, q])
    if share > 0.5 and p != q:
        assert minority > majority + 1e-6
    else:
        assert minority == pytest.approx(majority, abs=1e-12)
        assert (minority > 1e-6) == (p != q)


@settings(derandomize=True, deadline=None)
@given(st.lists(SHARES, min_size=2, max_size=2, unique=True), RATES, RATES)
def test_the_minority_deviates_more_as_the_majority_grows_strictly_only_where_tastes_differ(
    shares: list[float], p: float, q: float
) -> None:
    low, high = sorted(shares)
    (majority_low, minority_low), (majority_high, minority_high) = deviations(
        [[low, 1 - low], [high, 1 - high]], [p, q]
    )
    if p != q:
        assert minority_high > minority_low + 1e-6
        assert majority_high < majority_low - 1e-6
    else:
        assert minority_high == pytest.approx(minority_low, abs=1e-12) == pytest.approx(0.0, abs=1e-12)


def test_of_three_groups_a_small_one_may_be_the_closest() -> None:
    """0.4, 0.35 and 0.25 of the people with 0.9, 0.5 and 0.1: 0.56 in all, off by 0.34, 0.06 and 0.46."""
    assert deviations([0.4, 0.35, 0.25], [0.9, 0.5, 0.1]).tolist() == pytest.approx([0.34, 0.06, 0.46])
