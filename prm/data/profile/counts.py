"""How much each person judged, and how far people judged the same."""

from dataclasses import dataclass

import numpy as np

from prm.data.profile.arrays import Log, distinct

ENOUGH, AMPLE = 30, 100  # comparisons a person; see `prm.data.profile.verdict`
_EDGES = (0, 1, 2, 5, 10, 30, 100, 300)


@dataclass(frozen=True)
class Bin:
    """People with so many comparisons, and their shares in [0, 1] of all people and of all comparisons."""

    label: str
    people: int
    share_of_people: float
    share_of_comparisons: float


@dataclass(frozen=True)
class Holders:
    """People with at least `least` comparisons, and the shares in [0, 1] that they are and hold."""

    least: int
    people: int
    share_of_people: float
    share_of_comparisons: float


@dataclass(frozen=True)
class UserCounts:
    """How much each person judged. Comparisons per person leave ties aside: nobody's taste is learnt from them.

    Args:
        comparisons: all of them, `ties` included.
        histogram: all bins; the first, of people with ties alone, only where there are any.
        quartiles: comparisons per person: 25%, 50% and 75%.
        most: comparisons of the busiest person.
        enough, ample: those who have `ENOUGH` and `AMPLE` of them.
        median_answers: distinct answers that a person compared, median.
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
    """How far people judged the same; ties count as judgements. Shares in [0, 1].

    Args:
        people_per_prompt: mean, median and most.
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
    """Comparisons per person."""
    counts = np.bincount(log.user[~log.tie], minlength=log.people)
    total = max(int(counts.sum()), 1)
    bins = []
    for low, high in zip(_EDGES, (*_EDGES[1:], None), strict=True):
        inside = (counts >= low) & ((counts < high) if high is not None else True)
        n = int(inside.sum())
        label = f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}-{high - 1}"
        bins.append(Bin(label, n, n / log.people, int(counts[inside].sum()) / total))
    who, _ = distinct(np.tile(log.user, 2), np.concatenate([log.chosen, log.rejected]))
    quartiles = np.percentile(counts, [25, 50, 75])
    return UserCounts(
        people=log.people,
        comparisons=len(log.user),
        ties=int(log.tie.sum()),
        histogram=tuple(bins if bins[0].people else bins[1:]),
        quartiles=(float(quartiles[0]), float(quartiles[1]), float(quartiles[2])),
        most=int(counts.max()),
        enough=_holders(counts, ENOUGH, total),
        ample=_holders(counts, AMPLE, total),
        median_answers=float(np.median(np.bincount(who, minlength=log.people))),
    )


def _holders(counts: np.ndarray, least: int, total: int) -> Holders:
    inside = counts >= least
    n = int(inside.sum())
    return Holders(least, n, n / len(counts), int(counts[inside].sum()) / total)


def count_overlap(log: Log) -> Overlap:
    """People per prompt and per pair of answers."""
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
