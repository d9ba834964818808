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

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from prm.errors import PrmError
from prm.metrics import Array

_MAX_STEPS, _SMALL = 500, 1e-6  # of a margin, in logits; the step after so small a one is about its square
_MOST = 1e6  # times the fewest votes: beyond it, rounding the many hides the few


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
