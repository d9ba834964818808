"""Choosing among candidates by their rewards."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


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
