"""What a reward model without users learns from users who differ: the paper's two lemmas, in numbers.

**Lemma 3.2**: the vanilla reward model predicts, for each pair of responses, its share of the votes. The proof treats
the margin of every pair as a free parameter. It therefore needs assumptions that the paper does not state:

- a free reward for every prompt and response: nothing shared between texts, no penalty, and the optimum reached;
- each prompt's comparison graph (responses as nodes, compared pairs as edges) is a **forest**. Around a cycle margins
  sum to 0, so they are not free: if a cycle's pairs have votes both ways, the lemma holds only if the log odds of the
  votes sum to 0 too; otherwise the fit may even prefer the response that most voted against. A pair on no cycle gets
  its share in any graph;
- votes both ways. A unanimous vote has share 1, which no finite margin gives: the likelihood has no maximum, only a
  supremum that it approaches as margins grow. `fitted_preferences` is then that limit, which is the same for a
  vanishing penalty and for ever more steps.

**Lemma 3.3**: the minority's preference is further from the population's than the majority's, and the more so the
larger the majority. It needs **two** groups whose preferences do not change as the majority grows. Both claims are
strict only if the preferences differ, and the first only if the groups differ in size. Of three groups, a small one in
the middle may be the closest to the population.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from prm.errors import PrmError
from prm.metrics import Array

_MAX_STEPS, _TOLERANCE = 500, 1e-6  # change of a margin, in logits; the next step would be about its square
_MAX_RATIO = 1e6  # of the largest to the smallest count: beyond it, rounding errors of the large hide the small


def vote_shares(wins: ArrayLike) -> Array:
    """Share of votes for i over j, [k, k], from votes `wins` [k, k]; NaN where the two were never compared.

    `wins[i, j]` is the count (or weight) of votes for response i over response j, all on one prompt. Raises `PrmError`
    if `wins` is no such table, or if its counts differ by too large a factor.
    """
    w = _checked(wins)
    n = w + w.T
    return np.divide(w, n, out=np.full_like(w, np.nan), where=n > 0)


def is_forest(wins: ArrayLike) -> bool:
    """Whether the comparison graph of votes `wins` [k, k] has no cycle: edges = nodes - connected components."""
    w = _checked(wins)
    compared = w + w.T > 0
    parts, _ = connected_components(csr_array(compared), directed=False)
    return int(np.triu(compared).sum()) == len(w) - parts


def fit_rewards(wins: ArrayLike) -> tuple[Array, NDArray[np.int32]]:
    """(rewards, parts) of maximum Bradley-Terry likelihood (equation 1), both [k], from votes `wins` [k, k].

    Responses are in one part if each can be reached from the other along votes won. Within a part rewards are finite
    logits with mean 0. Between parts all votes go one way and the best margin is infinite; those votes then have no
    gradient, so each part is fitted separately (Ford 1957, "Solution of a ranking problem from binary comparisons").
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

    If the votes have no finite margin, its limit: 1 for the side with all the votes.
    """
    shares = vote_shares(wins)
    rewards, parts = fit_rewards(wins)
    finite = parts[:, None] == parts[None, :]
    return np.where(finite & ~np.isnan(shares), expit(rewards[:, None] - rewards[None, :]), shares)


def population(group_shares: ArrayLike, tastes: ArrayLike) -> Array:
    """P(first preferred) in the population, [...]: mean of the groups' preferences `tastes` [g], weighted by shares."""
    return np.asarray(np.asarray(group_shares, np.float64) @ np.asarray(tastes, np.float64))


def deviations(group_shares: ArrayLike, tastes: ArrayLike) -> Array:
    """Distance of each group's preference from the population's, [..., g], in probability."""
    return np.abs(population(group_shares, tastes)[..., None] - np.asarray(tastes, np.float64))


def _checked(wins: ArrayLike) -> Array:
    w = np.array(wins, np.float64)
    if w.ndim != 2 or w.shape[0] != w.shape[1] or not np.isfinite(w).all() or (w < 0).any() or np.diag(w).any():
        raise PrmError("votes must be a square table of finite counts of at least 0, with zeros on its diagonal")
    if (votes := w[w > 0]).size and votes.max() > _MAX_RATIO * votes.min():
        raise PrmError(
            f"votes must not differ by more than a factor of {_MAX_RATIO:g}, got {votes.min():g} and {votes.max():g}"
        )
    return w


def _newton(wins: Array) -> Array:
    """Rewards [k] of responses that can all be reached from each other along votes won.

    Newton steps, scaled by log(1 + d) / d, where d is the largest change of a margin: the third derivative of the loss
    is below the second, so that every such step lowers the loss, from any starting point.
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
        if change < _TOLERANCE:
            return rewards
    raise PrmError(f"the fit to the votes on {k} responses has not converged after {_MAX_STEPS} steps")
