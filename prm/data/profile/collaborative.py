"""Collaborative filtering probe: do users who agreed with a user before predict that user's other votes?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from prm.data.profile.arrays import Array, Ints, grouped
from prm.data.profile.heterogeneity import LEAST, Votes
from prm.metrics import Estimate

_MOST_PEOPLE, _MOST_PAIRS = 1000, 10_000
_ONE_GROUP = 0.1  # share of votes in one group of responses linked by comparisons, above which the group is split
_SHRINK = 10.0

Table = NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """Whether users who agreed with a user before predict that user's votes, which careless votes cannot explain.

    Each vote is predicted from the others' wins and losses of its two responses, weighted by their agreement with this
    user on other responses. This is compared with the best of three rules that are the same for all users (equal
    weights; weights by agreement with all others; a coin).

    Args:
        people, votes: numbers of users and votes predicted.
        alike, personal: shares in [0, 1] predicted by the best common rule and by the personal weights.
        gain: their difference in [-1, 1], with its interval by bootstrap over pairs, for these users.
    """

    people: int
    votes: int
    alike: float
    personal: float
    gain: Estimate


def find_neighbours(votes: Votes, seed: int = 0) -> Neighbours | None:
    """Gain of personal weights; `None` with fewer than two users who share `LEAST` pairs or more.

    Limited to the 1,000 users with most votes on shared pairs and the 10,000 pairs with most of their votes.
    """
    for _ in range(2):  # fewer users leave fewer shared pairs
        votes = _largest(votes)
    user_ids, user = np.unique(votes.person, return_inverse=True)
    if len(user_ids) < 2:
        return None
    responses, positions = np.unique(np.concatenate([votes.first, votes.second]), return_inverse=True)
    first, second = positions[: len(user)], positions[len(user) :]
    sides = _split_responses(first, second, len(responses), seed)
    side_votes, side_wins = [], []
    for side in (0, 1):
        on_side = (sides[first] == side) & (sides[second] == side)
        wins: Table = np.zeros((len(user_ids), len(responses)), np.float32)
        np.add.at(wins, (user[on_side], first[on_side]), votes.vote[on_side])
        np.add.at(wins, (user[on_side], second[on_side]), -votes.vote[on_side])
        side_wins.append(wins[:, sides == side])
        column = np.cumsum(sides == side) - 1
        side_votes.append((user[on_side], column[first[on_side]], column[second[on_side]], votes.vote[on_side]))
    right = np.concatenate(
        [_predict(side_wins[side - 1], side_wins[side], *side_votes[side]) for side in (0, 1)], axis=1
    )
    users = np.concatenate([part[0] for part in side_votes])
    pairs = np.concatenate([votes.pair[(sides[first] == side) & (sides[second] == side)] for side in (0, 1)])
    if not len(users):
        return None
    shares = right.mean(axis=1)
    best = 1 + int(np.argmax(shares[1:]))  # of the rules that are the same for all
    gain = grouped(right[0] - right[best], pairs)
    assert gain is not None
    return Neighbours(len(np.unique(users)), len(users), float(shares[best]), float(shares[0]), gain)


def _split_responses(first: Ints, second: Ints, n: int, seed: int) -> Ints:
    """A side, 0 or 1, for each of n responses.

    Responses linked by comparisons stay together, unless one group is large: then responses are split at random, and
    pairs across the split are lost.
    """
    graph = sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(n, n))
    _, group = sparse.csgraph.connected_components(graph, directed=False)
    votes = np.bincount(group[first])
    if votes.max() > _ONE_GROUP * len(first):
        group = np.arange(n)
    order = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    return (order % 2)[group].astype(np.int64)


def _largest(votes: Votes) -> Votes:
    """The votes of the most active users on the most voted pairs; pairs need two votes, users `LEAST`."""
    kept = np.bincount(votes.pair)[votes.pair] > 1
    votes = Votes(*(column[kept] for column in votes))
    for column, max_codes, min_votes in (("person", _MOST_PEOPLE, LEAST), ("pair", _MOST_PAIRS, 2)):
        codes = getattr(votes, column)
        counts = np.bincount(codes)
        top = np.zeros(len(counts), np.bool_)
        top[np.argsort(-counts, kind="stable")[:max_codes]] = True
        kept = (top & (counts >= min_votes))[codes]
        votes = Votes(*(values[kept] for values in votes))
    return votes


def _predict(past: Table, future: Table, user: Ints, first: Ints, second: Ints, vote: Ints) -> Array:
    """Whether each future vote is predicted correctly, [4 rules, votes]: 1, 0, or 0.5 for a draw.

    `past` and `future` hold wins minus losses, [users, responses]; `first` and `second` are columns of `future`.
    """
    agreed, shared = past @ past.T, abs(past) @ abs(past).T
    for matrix in (agreed, shared):
        np.fill_diagonal(matrix, 0.0)
    # agreement of j with all users but i: i's votes must not enter
    common = (agreed.sum(0) - agreed) / np.maximum(shared.sum(0) - shared, 1.0)
    np.fill_diagonal(common, 0.0)
    personal = (agreed + _SHRINK * common) / (shared + _SHRINK)
    right = []
    for weights in (personal, common, 1.0 - np.eye(len(past), dtype=np.float32)):
        scores = weights @ future
        margin = scores[user, first] - scores[user, second]
        # tolerance: a draw is not exactly 0 in single precision
        right.append(np.where(abs(margin) < 1e-4, 0.5, np.sign(margin) == vote))
    return np.array([*right, np.full(len(user), 0.5)])
