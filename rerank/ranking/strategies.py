"""Choosing among candidates by their rewards. Numbers in, numbers out: what a way ranks by, highest first."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prm.data.comparison import require_list
from prm.scoring.scorer import GainOverGeneric


class Ranked(NamedTuple):
    """One candidate: its place among those given, counted from 0, its text and what it is ranked by."""

    place: int
    text: str
    reward: float


def rank(candidates: Sequence[str], rewards: Tensor | Sequence[float]) -> list[Ranked]:
    """Candidates from the highest reward to the lowest; equal rewards keep the order given.

    Raises `ValueError` where candidates and rewards differ in number.
    """
    texts, values = require_list("candidates", candidates), require_list("rewards", rewards)
    scored = [Ranked(i, text, r) for i, (text, r) in enumerate(zip(texts, values, strict=True))]
    return sorted(scored, key=lambda c: -c.reward)


def soft(rewards: Tensor, temperature: float, times: Tensor | None = None) -> Tensor:
    """Probability [n] of each candidate, with odds of e^(reward / temperature): best-of-n is the limit at 0.

    Choosing by it is sampling from the base, tilted by the reward (Verdun et al. 2025, soft best-of-n).

    Args:
        times: how often each was sampled; once if left out.
    """
    odds = rewards.double() / temperature
    return (odds if times is None else odds + times.log()).softmax(-1)


def drawn(probabilities: Tensor, seed: int) -> Tensor:
    """What to rank by, [n], so that the first is drawn by these probabilities, and each next by those of the rest.

    Gumbel noise on their logarithms (Plackett-Luce).
    """
    noise = torch.from_numpy(np.random.default_rng(seed).gumbel(size=len(probabilities)))
    return probabilities.double().log() + noise


def regularised(rewards: Tensor, logps: Tensor, weight: float) -> Tensor:
    """Rewards [n] that stay close to the base: plus `weight` times its log-probability of each answer, in nats.

    An answer that the base finds unlikely needs a higher reward (Jinnai et al. 2024, regularised best-of-n).
    """
    return rewards + weight * logps


def pessimistic(rewards: Tensor, deviations: Tensor, number: float) -> Tensor:
    """Lower bounds [n]: rewards less `number` posterior deviations each."""
    return rewards - number * deviations


def cautious(gains: GainOverGeneric, deviations: float) -> Tensor:
    """Lower bounds [n] of what each candidate is to the person beside the generic pick, whose own bound is 0.

    Ranked by them, another candidate comes first only where the person's gain is `deviations` posterior deviations
    above 0. Raises `ValueError` for a negative number of them.
    """
    if deviations < 0.0:
        raise ValueError(f"deviations must not be negative, got {deviations}")
    return gains.mean - deviations * gains.std
