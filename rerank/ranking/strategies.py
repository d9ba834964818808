"""Strategies to choose among candidates by their rewards: each returns the values to rank by, highest first."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prm.data.arguments import require_list
from prm.scoring.head_scores import GainOverGeneric


class Ranked(NamedTuple):
    """One candidate, in sentence-transformers' words: its index in the input, its text and the value to rank by."""

    corpus_id: int
    text: str
    score: float


def rank(candidates: Sequence[str], rewards: Tensor | Sequence[float]) -> list[Ranked]:
    """Sort candidates from the highest reward to the lowest; ties keep the input order.

    Raises `ValueError` if the numbers of candidates and rewards differ.
    """
    texts, values = require_list("candidates", candidates), require_list("rewards", rewards)
    scored = [Ranked(i, text, r) for i, (text, r) in enumerate(zip(texts, values, strict=True))]
    return sorted(scored, key=lambda c: -c.score)


def soft(rewards: Tensor, temperature: float, times: Tensor | None = None) -> Tensor:
    """Probability [n] of each candidate, proportional to e^(reward / temperature): best-of-n is the limit at 0.

    Drawing from it samples from the generator tilted by the reward (Verdun et al. 2025, soft best-of-n).

    Args:
        times: how often each candidate was sampled; once if left out.
    """
    odds = rewards.double() / temperature
    return (odds if times is None else odds + times.log()).softmax(-1)


def plackett_luce(probabilities: Tensor, seed: int) -> Tensor:
    """Random values to rank by, [n]: a Plackett-Luce draw without replacement with these probabilities.

    Adds Gumbel noise to the log-probabilities.
    """
    noise = torch.from_numpy(np.random.default_rng(seed).gumbel(size=len(probabilities)))
    return probabilities.double().log() + noise


def regularised(rewards: Tensor, logps: Tensor, weight: float) -> Tensor:
    """Rewards [n] plus `weight` times the generator's log-probability of each response, in nats.

    A response that is unlikely under the generator needs a higher reward (Jinnai et al. 2024, regularised best-of-n).
    """
    return rewards + weight * logps


def pessimistic(rewards: Tensor, deviations: Tensor, number: float) -> Tensor:
    """Lower bounds [n]: each reward minus `number` posterior standard deviations."""
    return rewards - number * deviations


def cautious(gains: GainOverGeneric, deviations: float) -> Tensor:
    """Lower bounds [n] of the user's gain from each candidate over the generic user's pick, whose bound is 0.

    A candidate beats the generic pick only if the user's gain is more than `deviations` posterior standard deviations
    above 0. Raises `ValueError` if `deviations` is negative.
    """
    if deviations < 0.0:
        raise ValueError(f"deviations must not be negative, got {deviations}")
    return gains.mean - deviations * gains.std
