"""Ranking by hand: order, ties, places."""

import pytest
import torch

from prm.scorer import Gains
from rerank.select import Ranked, cautious, rank


def test_highest_reward_first_and_places_count_from_0() -> None:
    assert rank(["a", "b", "c"], torch.tensor([0.5, 2.0, -1.0])) == [
        Ranked(1, "b", 2.0),
        Ranked(0, "a", 0.5),
        Ranked(2, "c", -1.0),
    ]


def test_equal_rewards_keep_the_order_given() -> None:
    """A sort by (reward, text) or a reversed ascending sort would put them the other way round."""
    ranked = rank(["z", "low", "a", "m", "top"], torch.tensor([1.0, 0.0, 1.0, 1.0, 3.0]))
    assert [c.place for c in ranked] == [4, 0, 2, 3, 1]


def test_order_is_that_of_a_stable_argsort() -> None:
    rewards = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(0)).float()
    texts = [f"answer {i}" for i in range(200)]
    ranked = rank(texts, rewards)
    assert [c.place for c in ranked] == torch.argsort(rewards, descending=True, stable=True).tolist()
    assert all(c.text == texts[c.place] and c.reward == rewards[c.place] for c in ranked)


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
    gains = Gains(0, torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 0.4, 1.5]))
    first = [rank(["generic", "small", "large"], cautious(gains, k))[0].text for k in (0.0, 1.0, 3.0)]
    assert first == ["large", "small", "generic"]
    with pytest.raises(ValueError, match="negative"):
        cautious(gains, -1.0)
