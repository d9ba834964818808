"""Which responses become pairs, by hand."""

from typing import Any

import pytest

from prm.errors import PrmError
from rerank.pairs.rules import PairRules, choose_pairs

REWARDS = [0.5, 2.0, -1.0, 1.5, 0.0]  # the best is 1; worst first: 2, 4, 0, 3
WORDS = [10, 12, 30, 11, 2]


@pytest.mark.parametrize(
    ("rules", "pairs", "refused"),
    [
        ({}, [(1, 2)], ""),
        ({"max_pairs": 3}, [(1, 2), (1, 4), (1, 0)], ""),
        ({"max_pairs": 9}, [(1, 2), (1, 4), (1, 0), (1, 3)], ""),
        ({"max_pairs": 9, "min_margin": 1.5}, [(1, 2), (1, 4), (1, 0)], ""),  # 2.0 - 0.5 is enough
        ({"min_margin": 3.0}, [(1, 2)], ""),
        ({"min_margin": 3.1}, [], "min_margin"),
        ({"max_length_difference": 10}, [(1, 4)], ""),  # 12 and 30 words are too far apart
        ({"max_length_difference": 0}, [], "max_length_difference"),
        ({"max_pairs": 9, "min_length_difference": 2}, [(1, 2), (1, 4), (1, 0)], ""),  # 12 and 11 are too close
        ({"min_length_difference": 19}, [], "min_length_difference"),
        ({"max_length_difference": 10, "min_margin": 2.5}, [], "max_length_difference"),  # of the first pair
    ],
)
def test_pairs_by_hand(rules: dict[str, Any], pairs: list[tuple[int, int]], refused: str) -> None:
    assert choose_pairs(REWARDS, WORDS, PairRules(**rules), "key") == (pairs, refused)


def test_equal_rewards_are_no_pair_and_the_first_of_equals_is_chosen() -> None:
    assert choose_pairs([1.0, 1.0], [1, 2], PairRules(), "key") == ([], "equal_rewards")
    assert choose_pairs([0.0, 1.0, 1.0, 0.0], [1] * 4, PairRules(max_pairs=9), "key") == ([(1, 0), (1, 3)], "")
    assert choose_pairs([1.0], [1], PairRules(), "key") == ([], "too_few_responses")
    assert choose_pairs([], [], PairRules(), "key") == ([], "too_few_responses")


def test_random_rejected_ones_are_drawn_by_seed_and_key() -> None:
    """Each of the others about as often, and the same for the same seed and key."""

    def rejected(seed: int, key: str) -> int:
        ((chosen, other),), _ = choose_pairs(REWARDS, WORDS, PairRules(rejected="random", seed=seed), key)
        assert chosen == 1
        return other

    drawn = [rejected(0, str(k)) for k in range(400)]
    assert drawn == [rejected(0, str(k)) for k in range(400)]
    assert drawn != [rejected(1, str(k)) for k in range(400)]
    assert all(70 < drawn.count(other) < 130 for other in (0, 2, 3, 4))
    pairs, _ = choose_pairs(REWARDS, WORDS, PairRules(rejected="random", max_pairs=4), "key")
    assert sorted(pairs) == [(1, 0), (1, 2), (1, 3), (1, 4)]  # none twice


def test_lengths_that_no_pair_can_have_are_refused() -> None:
    with pytest.raises(PrmError, match="min_length_difference"):
        PairRules(min_length_difference=3, max_length_difference=2)
