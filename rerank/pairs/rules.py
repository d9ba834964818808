"""Which of n responses become chosen and rejected. Imports no torch."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prm.checks import Count, Natural, NonNegative, Seed, Settings, require


@dataclass
class PairRules(Settings):
    """Rules for pairs of responses. The chosen one is the user's best; rejected ones are taken in order.

    Args:
        rejected: order in which rejected responses are taken: `worst` first, or `random`.
        max_pairs: maximum number of pairs of a user and prompt.
        min_margin: minimum difference of the two rewards, in logits; equal rewards never make a pair.
        min_length_difference: minimum difference of the two lengths, in words.
        max_length_difference: maximum difference of the two lengths, in words; null: any.
        drop_truncated: leave out responses that were cut at their maximum length.
        soft_labels: write the model's P(chosen > rejected) as `p_chosen`; otherwise chosen is preferred for certain.
        seed: random seed of the order.
    """

    rejected: Literal["worst", "random"] = "worst"
    max_pairs: Count = 1
    min_margin: NonNegative = 0.0
    min_length_difference: Natural = 0
    max_length_difference: Natural | None = None
    drop_truncated: bool = True
    soft_labels: bool = False
    seed: Seed = 0

    def check_together(self) -> None:
        """Raise `PrmError` if the minimum difference of lengths is above the maximum."""
        most = self.max_length_difference
        fault = f"must be at most max_length_difference, {most}, got {self.min_length_difference}"
        require(most is None or self.min_length_difference <= most, "min_length_difference", fault)


def choose_pairs(
    rewards: Sequence[float], words: Sequence[int], rules: PairRules, key: str
) -> tuple[list[tuple[int, int]], str]:
    """(indices of chosen and rejected of each pair, the rule that refused the first pair if there is none).

    Ties of rewards keep the order of the input.

    Args:
        words: length of each response.
        key: of the user and prompt, for the random order.
    """
    if len(rewards) < 2:
        return [], "too_few_responses"
    best = max(range(len(rewards)), key=rewards.__getitem__)
    others = sorted((i for i in range(len(rewards)) if i != best), key=rewards.__getitem__)
    if rules.rejected == "random":
        random.Random(f"{rules.seed}\x01{key}").shuffle(others)
    pairs: list[tuple[int, int]] = []
    refused = ""
    for other in others:
        rule = _refusing(rewards[best] - rewards[other], abs(words[best] - words[other]), rules)
        if not rule:
            pairs.append((best, other))
        refused = refused or rule
        if len(pairs) == rules.max_pairs:
            break
    return pairs, "" if pairs else refused


def _refusing(margin: float, difference: int, rules: PairRules) -> str:
    """The first rule that a pair breaks, or ""."""
    if margin <= 0.0:
        return "equal_rewards"
    if margin < rules.min_margin:
        return "min_margin"
    if difference < rules.min_length_difference:
        return "min_length_difference"
    if rules.max_length_difference is not None and difference > rules.max_length_difference:
        return "max_length_difference"
    return ""
