"""What a reward model that knows nobody learns from people who differ: the paper's two lemmas, in numbers.

**Lemma 3.2**: the vanilla reward model gives each pair of answers the share of votes that it got. The proof takes the
margin of every pair as a number of its own. It therefore needs what the paper does not state:

- a reward of its own for every prompt and answer: nothing shared between texts, no penalty, and the optimum reached;
- that each prompt's comparison graph (answers as nodes, compared pairs as edges) is a **forest**. Around a cycle
  margins sum to 0, so they are not free: where a cycle's pairs have votes both ways, the lemma holds only if the log
  odds of the votes sum to 0 too, and else the fit may even prefer the answer that most voted against. A pair that lies
  on no cycle gets its share in any graph;
- votes both ways. A unanimous vote has share 1, which no finite margin gives: the likelihood has no maximum, only a
  supremum that it nears as margins grow. `fitted_preferences` is then that limit, which is one and the same for every
  way there: a vanishing penalty, or ever more steps.

**Lemma 3.3**: the minority's taste is further from the population's than the majority's, the more so the larger the
majority. It needs **two** groups with tastes that do not change as the majority grows. Both claims are strict only
where the tastes differ, and the first only where the groups differ in size. Of three groups, a small one in the middle
may be the closest to the population.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from prm.errors import PrmError
from prm.metrics import Array

_MAX_STEPS, _SMALL = 500, 1e-6  # of a margin, in logits; the step after so small a one is about its square
_MOST = 1e6  # times the fewest votes: beyond it, rounding the many hides the few

# Votes for the first and for the second answer. The last pair of the forest is unanimous. In the cycle most people
# prefer A to B, B to C and C to A. By hand: rewards log 2, log 2 and 0 fit it, and miss every pair by one vote.
FOREST = (("A", "B", 3, 1), ("A", "C", 2, 3), ("C", "D", 1, 9), ("D", "E", 5, 5), ("F", "G", 7, 3), ("G", "H", 6, 0))
CYCLE = (("A", "B", 3, 1), ("B", "C", 5, 1), ("C", "A", 2, 1))
TASTES = ((0.9, 0.1), (0.8, 0.4), (0.7, 0.7))  # P(first answer preferred) in the majority and in the minority


@dataclass(frozen=True)
class Pair:
    """Two answers, the votes on them, and what the vanilla model makes of those.

    Args:
        first, second: names of the answers.
        votes_first, votes_second: how many preferred each.
        share: votes for the first answer over all votes on the pair.
        fitted: P(first preferred) of the vanilla model.
        limit: the votes fix no finite margin; `fitted` is its limit.
    """

    first: str
    second: str
    votes_first: float
    votes_second: float
    share: float
    fitted: float
    limit: bool


@dataclass(frozen=True)
class Groups:
    """Two groups' distance from the population, |P(first preferred) - P(first preferred | group)|.

    Args:
        taste_majority, taste_minority: P(first preferred) in the group.
        share: of the majority among the people, from 1/2 to 1.
        majority, minority: the distance of each group, one for each share.
    """

    taste_majority: float
    taste_minority: float
    share: tuple[float, ...]
    majority: tuple[float, ...]
    minority: tuple[float, ...]


@dataclass(frozen=True)
class Theory:
    """Both lemmas on small examples: votes whose comparison graph is a forest, votes on a cycle, pairs of groups."""

    forest: tuple[Pair, ...]
    cycle: tuple[Pair, ...]
    groups: tuple[Groups, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return asdict(self)


def show_lemmas() -> Theory:
    """The examples of `FOREST`, `CYCLE` and `TASTES`, worked out."""
    return Theory(_pairs(FOREST), _pairs(CYCLE), tuple(_groups(*tastes) for tastes in TASTES))


def vote_shares(wins: ArrayLike) -> Array:
    """Share of votes for i over j, [k, k], from votes `wins` [k, k]; NaN where the two were never compared.

    `wins[i, j]` counts (or weighs) the votes for answer i over answer j, all on one prompt. Raises `PrmError` for what
    is no such table, and for votes too unequal in number to be weighed against each other.
    """
    w = _checked(wins)
    n = w + w.T
    return np.divide(w, n, out=np.full_like(w, np.nan), where=n > 0)


def is_forest(wins: ArrayLike) -> bool:
    """Whether the comparison graph of votes `wins` [k, k] has no cycle: as many edges as nodes less parts."""
    w = _checked(wins)
    compared = w + w.T > 0
    parts, _ = connected_components(csr_array(compared), directed=False)
    return int(np.triu(compared).sum()) == len(w) - parts


def fit_rewards(wins: ArrayLike) -> tuple[Array, NDArray[np.int32]]:
    """(rewards, parts) of greatest Bradley-Terry likelihood (equation 1), both [k], from votes `wins` [k, k].

    Answers are in one part if each leads to the other along votes won. Within a part rewards are finite logits with
    mean 0. Between parts all votes go one way, and the best margin is infinite; those votes then pull at nothing, so
    each part is fitted by itself (Ford 1957, "Solution of a ranking problem from binary comparisons").
    """
    w = _checked(wins)
    _, parts = connected_components(csr_array(w), directed=True, connection="strong")
    rewards = np.zeros(len(w))
    for part in np.unique(parts):
        members = np.flatnonzero(parts == part)
        rewards[members] = _newton(w[np.ix_(members, members)])
    return rewards, parts


def fitted_preferences(wins: ArrayLike) -> Array:
    """sigma(r_i - r_j) of the vanilla reward model, [k, k], fitted to votes `wins` [k, k]; NaN where never compared.

    Where votes fix no finite margin, its limit: 1 for the side that got them all.
    """
    shares = vote_shares(wins)
    rewards, parts = fit_rewards(wins)
    finite = parts[:, None] == parts[None, :]
    return np.where(finite & ~np.isnan(shares), expit(rewards[:, None] - rewards[None, :]), shares)


def population(group_shares: ArrayLike, tastes: ArrayLike) -> Array:
    """P(first preferred) in the population, [...]: the mean of the groups' `tastes` [g] by their shares [..., g]."""
    return np.asarray(np.asarray(group_shares, np.float64) @ np.asarray(tastes, np.float64))


def deviations(group_shares: ArrayLike, tastes: ArrayLike) -> Array:
    """How far each group's taste is from the population's, [..., g], in probability."""
    return np.abs(population(group_shares, tastes)[..., None] - np.asarray(tastes, np.float64))


def _checked(wins: ArrayLike) -> Array:
    w = np.array(wins, np.float64)
    if w.ndim != 2 or w.shape[0] != w.shape[1] or not np.isfinite(w).all() or (w < 0).any() or np.diag(w).any():
        raise PrmError("votes must be a square table of finite counts of at least 0, with zeros on its diagonal")
    if (cast := w[w > 0]).size and cast.max() > _MOST * cast.min():
        raise PrmError(
            f"votes must not differ by more than a factor of {_MOST:g}, got {cast.min():g} and {cast.max():g}"
        )
    return w


def _newton(wins: Array) -> Array:
    """Rewards [k] of answers that all lead to each other along votes won.

    Newton steps, cut to log(1 + d) / d of their length, d being the largest change of a margin: the third derivative
    of the loss is below the second, which makes every such step a gain, wherever it starts.
    """
    k = len(wins)
    n, rewards = wins + wins.T, np.zeros(k)
    for _ in range(_MAX_STEPS):
        p = expit(rewards[:, None] - rewards[None, :])
        curvature = n * p * p.T
        hessian = np.diag(curvature.sum(1)) - curvature
        # rewards are free up to a constant: n.max() / k on every entry holds their sum at 0 and changes nothing else
        step = np.linalg.solve(hessian + n.max(initial=1.0) / k, (wins - n * p).sum(1))
        change = float(np.ptp(step))
        if change > 0.0:
            rewards += step * np.log1p(change) / change
        if change < _SMALL:
            return rewards
    raise PrmError(f"the fit to the votes on {k} answers has not settled after {_MAX_STEPS} steps")


def _pairs(votes: tuple[tuple[str, str, int, int], ...]) -> tuple[Pair, ...]:
    """The fit of votes that are given pair by pair."""
    names = sorted({name for first, second, _, _ in votes for name in (first, second)})
    places = [(names.index(first), names.index(second)) for first, second, _, _ in votes]
    wins = np.zeros((len(names), len(names)))
    for (i, j), (_, _, for_first, for_second) in zip(places, votes, strict=True):
        wins[i, j], wins[j, i] = for_first, for_second
    shares, fitted, (_, parts) = vote_shares(wins), fitted_preferences(wins), fit_rewards(wins)
    return tuple(
        Pair(*vote, share=float(shares[at]), fitted=float(fitted[at]), limit=bool(parts[at[0]] != parts[at[1]]))
        for at, vote in zip(places, votes, strict=True)
    )


def _groups(taste_majority: float, taste_minority: float) -> Groups:
    share = np.linspace(0.5, 1.0, 11)
    found = deviations(np.stack([share, 1.0 - share], -1), [taste_majority, taste_minority])
    lists = (tuple(float(x) for x in column) for column in (share, found[:, 0], found[:, 1]))
    return Groups(taste_majority, taste_minority, *lists)
