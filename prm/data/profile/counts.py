"""Comparisons per user, and overlap of users on prompts and pairs."""

from dataclasses import dataclass

import numpy as np

from prm.data.profile.arrays import Log, distinct

ENOUGH, AMPLE = 30, 100  # comparisons per user; see `prm.data.profile.verdict`
_EDGES = (0, 1, 2, 5, 10, 30, 100, 300)


@dataclass(frozen=True)
class Bin:
    """Users with so many comparisons, and their shares in [0, 1] of all users and of all comparisons."""

    label: str
    people: int
    share_of_people: float
    share_of_comparisons: float


@dataclass(frozen=True)
class Holders:
    """Users with at least `least` comparisons, and their shares in [0, 1] of all users and of all comparisons."""

    least: int
    people: int
    share_of_people: float
    share_of_comparisons: float


@dataclass(frozen=True)
class UserCounts:
    """Comparisons per user, without ties, which say nothing about preferences.

    Args:
        comparisons: all comparisons, with `ties`.
        histogram: all bins; the first (users with ties only) is left out if empty.
        quartiles: comparisons per user: 25%, 50% and 75%.
        most: maximum of comparisons per user.
        enough, ample: users with at least `ENOUGH` and `AMPLE` comparisons.
        median_answers: median number of distinct responses per user.
    """

    people: int
    comparisons: int
    ties: int
    histogram: tuple[Bin, ...]
    quartiles: tuple[float, float, float]
    most: int
    enough: Holders
    ample: Holders
    median_answers: float


@dataclass(frozen=True)
class Overlap:
    """How many prompts and pairs several users compared, with ties. Shares in [0, 1].

    Args:
        people_per_prompt: mean, median and maximum.
    """

    prompts: int
    shared_prompts: int
    share_of_prompts: float
    people_per_prompt: tuple[float, float, int]
    pairs: int
    shared_pairs: int
    share_of_pairs: float
    share_of_comparisons: float


def count_people(log: Log) -> UserCounts:
    """Comparisons per user."""
    counts = np.bincount(log.user[~log.tie], minlength=log.people)
    total = max(int(counts.sum()), 1)
    enough, ample = enough_and_ample(counts)
    bins = []
    for low, high in zip(_EDGES, (*_EDGES[1:], None), strict=True):
        inside = (counts >= low) & ((counts < high) if high is not None else True)
        n = int(inside.sum())
        label = f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}-{high - 1}"
        bins.append(Bin(label, n, n / log.people, int(counts[inside].sum()) / total))
    user, _ = distinct(np.tile(log.user, 2), np.concatenate([log.chosen, log.rejected]))
    quartiles = np.percentile(counts, [25, 50, 75])
    return UserCounts(
        people=log.people,
        comparisons=len(log.user),
        ties=int(log.tie.sum()),
        histogram=tuple(bins if bins[0].people else bins[1:]),
        quartiles=(float(quartiles[0]), float(quartiles[1]), float(quartiles[2])),
        most=int(counts.max()),
        enough=enough,
        ample=ample,
        median_answers=float(np.median(np.bincount(user, minlength=log.people))),
    )


def enough_and_ample(counts: np.ndarray) -> tuple[Holders, Holders]:
    """The users with at least `ENOUGH` and with at least `AMPLE` of their comparisons, [people], ties aside."""
    return _holders(counts, ENOUGH), _holders(counts, AMPLE)


def _holders(counts: np.ndarray, least: int) -> Holders:
    inside = counts >= least
    total = max(int(counts.sum()), 1)
    return Holders(least, int(inside.sum()), float(inside.mean()), int(counts[inside].sum()) / total)


def count_overlap(log: Log) -> Overlap:
    """Users per prompt and per pair of responses."""
    per_prompt = np.bincount(distinct(log.user, log.prompt)[1], minlength=log.prompts)
    per_pair = np.bincount(distinct(log.user, log.pair)[1])
    shared_prompts, shared_pairs = int((per_prompt > 1).sum()), int((per_pair > 1).sum())
    return Overlap(
        prompts=log.prompts,
        shared_prompts=shared_prompts,
        share_of_prompts=shared_prompts / log.prompts,
        people_per_prompt=(float(per_prompt.mean()), float(np.median(per_prompt)), int(per_prompt.max())),
        pairs=len(per_pair),
        shared_pairs=shared_pairs,
        share_of_pairs=shared_pairs / len(per_pair),
        share_of_comparisons=float((per_pair[log.pair] > 1).mean()),
    )
