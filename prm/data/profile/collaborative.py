"""Do those who agreed with a person before foretell what that person says next? The signal that taste alone gives."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from prm.data.profile.arrays import Array, Ints, grouped
from prm.data.profile.heterogeneity import LEAST, Votes
from prm.metrics import Estimate

_MOST_PEOPLE, _MOST_PAIRS = 1000, 10_000
_ONE_GROUP = 0.1  # share of votes on answers that are all linked by comparisons
_SHRINK = 10.0

Table = NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """Whether those who agreed with a person before foretell that person's votes: what carelessness cannot do.

    Each vote is foretold from the others' wins and losses of its two answers, weighted by how far they agreed with this
    person on other answers; against the best of three rules that treat everyone alike (all weigh the same; they weigh
    by how far they agree with others; coin).

    Args:
        people, votes: those foretold.
        alike, personal: shares in [0, 1] foretold by the best common rule and by the personal weights.
        gain: the difference in [-1, 1], interval by bootstrap over pairs: the question is whether these people differ.
    """

    people: int
    votes: int
    alike: float
    personal: float
    gain: Estimate


def find_neighbours(votes: Votes, seed: int = 0) -> Neighbours | None:
    """Gain of personal weights; `None` with fewer than two people who share `LEAST` pairs or more.

    Of larger logs, the 1,000 people with most votes on shared pairs and the 10,000 pairs with most of their votes.
    """
    for _ in range(2):  # fewer people leave fewer shared pairs
        votes = _largest(votes)
    people, person = np.unique(votes.person, return_inverse=True)
    if len(people) < 2:
        return None
    answers, places = np.unique(np.concatenate([votes.first, votes.second]), return_inverse=True)
    first, second = places[: len(person)], places[len(person) :]
    sides = _split_answers(first, second, len(answers), seed)
    judged, past = [], []
    for side in (0, 1):
        kept = (sides[first] == side) & (sides[second] == side)
        wins: Table = np.zeros((len(people), len(answers)), np.float32)
        np.add.at(wins, (person[kept], first[kept]), votes.vote[kept])
        np.add.at(wins, (person[kept], second[kept]), -votes.vote[kept])
        past.append(wins[:, sides == side])
        inside = np.cumsum(sides == side) - 1
        judged.append((person[kept], inside[first[kept]], inside[second[kept]], votes.vote[kept]))
    right = np.concatenate([_predict(past[side - 1], past[side], *judged[side]) for side in (0, 1)], axis=1)
    who = np.concatenate([part[0] for part in judged])
    where = np.concatenate([votes.pair[(sides[first] == side) & (sides[second] == side)] for side in (0, 1)])
    if not len(who):
        return None
    shares = right.mean(axis=1)
    best = 1 + int(np.argmax(shares[1:]))  # of the rules that treat everyone alike
    gain = grouped(right[0] - right[best], where)
    assert gain is not None
    return Neighbours(len(np.unique(who)), len(who), float(shares[best]), float(shares[0]), gain)


def _split_answers(first: Ints, second: Ints, n: int, seed: int) -> Ints:
    """0 or 1 for each of n answers, so that no answer stands on both sides.

    Answers that were ever compared go together where that leaves many groups; one large group is cut through, and
    pairs across the cut are lost.
    """
    graph = sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(n, n))
    _, group = sparse.csgraph.connected_components(graph, directed=False)
    votes = np.bincount(group[first])
    if votes.max() > _ONE_GROUP * len(first):
        group = np.arange(n)
    order = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    return (order % 2)[group].astype(np.int64)


def _largest(votes: Votes) -> Votes:
    """The votes of the people and on the pairs that have most, of pairs with two votes and people with `LEAST`."""
    kept = np.bincount(votes.pair)[votes.pair] > 1
    votes = Votes(*(column[kept] for column in votes))
    for column, most, least in (("person", _MOST_PEOPLE, LEAST), ("pair", _MOST_PAIRS, 2)):
        codes = getattr(votes, column)
        counts = np.bincount(codes)
        top = np.zeros(len(counts), np.bool_)
        top[np.argsort(-counts, kind="stable")[:most]] = True
        kept = (top & (counts >= least))[codes]
        votes = Votes(*(values[kept] for values in votes))
    return votes


def _predict(past: Table, future: Table, who: Ints, first: Ints, second: Ints, vote: Ints) -> Array:
    """Whether each future vote is foretold right, [4 rules, votes]: 1, 0 or 0.5 for a draw.

    `past` and `future` hold wins less losses, [people, answers]; `first` and `second` are columns of `future`.
    """
    agreed, shared = past @ past.T, abs(past) @ abs(past).T
    for matrix in (agreed, shared):
        np.fill_diagonal(matrix, 0.0)
    # how far j agrees with others, whoever foretells: i's own votes are left out of it
    common = (agreed.sum(0) - agreed) / np.maximum(shared.sum(0) - shared, 1.0)
    np.fill_diagonal(common, 0.0)
    personal = (agreed + _SHRINK * common) / (shared + _SHRINK)
    right = []
    for weights in (personal, common, 1.0 - np.eye(len(past), dtype=np.float32)):
        scores = weights @ future
        margin = scores[who, first] - scores[who, second]
        # what single precision makes of 0 is still a draw
        right.append(np.where(abs(margin) < 1e-4, 0.5, np.sign(margin) == vote))
    return np.array([*right, np.full(len(who), 0.5)])
