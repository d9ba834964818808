"""Ranking by hand: order, ties, places."""

import math

import pytest
import torch

from prm.errors import PrmError
from prm.scoring.head_scores import GainOverGeneric
from rerank.ranking.strategies import Ranked, cautious, pessimistic, plackett_luce, rank, regularised, soft
from rerank.ranking.strategy_flag import Strategy


def test_highest_reward_first_and_indices_count_from_0() -> None:
    assert rank(["a", "b", "c"], torch.tensor([0.5, 2.0, -1.0])) == [
        Ranked(1, "b", 2.0),
        Ranked(0, "a", 0.5),
        Ranked(2, "c", -1.0),
    ]


def test_equal_rewards_keep_the_order_given() -> None:
    """A sort by (reward, text) or a reversed ascending sort would put them the other way round."""
    ranked = rank(["z", "low", "a", "m", "top"], torch.tensor([1.0, 0.0, 1.0, 1.0, 3.0]))
    assert [c.corpus_id for c in ranked] == [4, 0, 2, 3, 1]


def test_order_is_that_of_a_stable_argsort() -> None:
    rewards = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(0)).float()
    texts = [f"answer {i}" for i in range(200)]
    ranked = rank(texts, rewards)
    assert [c.corpus_id for c in ranked] == torch.argsort(rewards, descending=True, stable=True).tolist()
    assert all(c.text == texts[c.corpus_id] and c.score == rewards[c.corpus_id] for c in ranked)


def test_the_same_text_twice_stays_twice() -> None:
    assert rank(["a", "a"], torch.tensor([0.0, 1.0])) == [Ranked(1, "a", 1.0), Ranked(0, "a", 0.0)]


def test_no_candidates_rank_as_none() -> None:
    assert rank([], torch.empty(0)) == []


@pytest.mark.parametrize(("texts", "rewards"), [(["a", "b"], [1.0]), (["a"], [1.0, 2.0]), ([], [1.0])])
def test_unequal_lengths_raise(texts: list[str], rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="zip"):
        rank(texts, torch.tensor(rewards))


def test_caution_keeps_the_generic_pick_until_the_gain_is_sure() -> None:
    """Gains of 1 and 2 with deviations .4 and 1.5: at one deviation the first is surer, at three neither is."""
    gains = GainOverGeneric(0, torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 0.4, 1.5]))
    first = [rank(["generic", "small", "large"], cautious(gains, k))[0].text for k in (0.0, 1.0, 3.0)]
    assert first == ["large", "small", "generic"]
    with pytest.raises(ValueError, match="negative"):
        cautious(gains, -1.0)


def test_soft_choice_by_hand() -> None:
    """Odds of e^(2 / 2) and of 3 draws to 1; near 0 it is the best of them."""
    found = soft(torch.tensor([2.0, 0.0]), 2.0)
    assert (found[0] / found[1]).item() == pytest.approx(math.e)
    found = soft(torch.tensor([1.0, 1.0]), 0.1, torch.tensor([3, 1]))
    assert found.tolist() == pytest.approx([0.75, 0.25])
    assert soft(torch.tensor([1.0, 1.5, -3.0]), 1e-3).tolist() == pytest.approx([0, 1, 0])


def test_soft_choices_are_drawn_as_often_as_they_are_likely() -> None:
    """And of the rest the second: P(b, a, c) = .3 * .6 / .7. A seed always draws the same."""
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    orders = [tuple(plackett_luce(p, seed).argsort(descending=True).tolist()) for seed in range(4000)]
    first = [sum(order[0] == i for order in orders) / 4000 for i in range(3)]
    assert first == pytest.approx(p.tolist(), abs=0.025)
    assert sum(order == (1, 0, 2) for order in orders) / 4000 == pytest.approx(0.3 * 0.6 / 0.7, abs=0.025)
    assert torch.equal(plackett_luce(p, 7), plackett_luce(p, 7))


def test_regularised_and_pessimistic_by_hand() -> None:
    rewards = torch.tensor([1.0, 2.0])
    assert regularised(rewards, torch.tensor([-10.0, -30.0]), 0.1).tolist() == pytest.approx([0.0, -1.0])
    assert pessimistic(rewards, torch.tensor([0.1, 1.0]), 2.0).tolist() == pytest.approx([0.8, 0.0])


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("best", Strategy()),
        ("soft:0.5", Strategy("soft", 0.5)),
        ("regularised:0", Strategy("regularised", 0.0)),
        ("cautious:1e1", Strategy("cautious", 10.0)),
        ("pessimistic:2", Strategy("pessimistic", 2.0)),
    ],
)
def test_choices_are_parsed(text: str, choice: Strategy) -> None:
    assert Strategy.parse(text) == choice


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("bets", "'bets' is not known; did you mean 'best'"),
        ("", "'' is not known"),
        ("best:1", "takes no number"),
        ("soft", "give its temperature in logits, as in soft:1"),
        ("cautious:", "must be a number, got ''"),
        ("soft:0", "must be a number above 0"),
        ("soft:warm", "must be a number, got 'warm'"),
        ("cautious:-1", "must be a number at least 0"),
        ("cautious:nan", "must be a number at least 0"),
        ("pessimistic:inf", "must be a number at least 0"),
    ],
)
def test_choices_that_make_no_sense_are_named(text: str, fault: str) -> None:
    with pytest.raises(PrmError, match=f"strategy.*{fault}"):
        Strategy.parse(text)
