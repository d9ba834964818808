"""Choosing among candidates by their rewards."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from prm.scorer import Gains


class Ranked(NamedTuple):
    """One candidate: its place among those given, counted from 0, its text and its reward in logits."""

    place: int
    text: str
    reward: float


def rank(candidates: Sequence[str], rewards: Tensor) -> list[Ranked]:
    """Candidates from the highest reward to the lowest; equal rewards keep the order given.

    Raises `ValueError` where candidates and rewards differ in number.
    """
    scored = [Ranked(i, text, r) for i, (text, r) in enumerate(zip(candidates, rewards.tolist(), strict=True))]
    return sorted(scored, key=lambda c: -c.reward)


def cautious(gains: Gains, deviations: float) -> Tensor:
    """Lower bounds [n] of what each candidate is to the person beside the generic pick, whose own bound is 0.

    Ranked by them, another candidate comes first only where the person's gain is `deviations` posterior deviations
    above 0. Raises `ValueError` for a negative number of them.
    """
    if deviations < 0.0:
        raise ValueError(f"deviations must not be negative, got {deviations}")
    return gains.mean - deviations * gains.std
