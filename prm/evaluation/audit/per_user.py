"""Gain or loss of each user by personalisation, against the tuned uniform model, with tests over their prompts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from prm.data.profile.arrays import Ints
from prm.metrics import MIN_COMPARISONS, Array, Estimate, correct, nll

Change = Literal["gains", "loses", "unclear"]
FALSE_DISCOVERIES = 0.05  # expected share of errors among the users reported to gain, and among those reported to lose


@dataclass(frozen=True)
class UserResult:
    """The personal model against the uniform one on one user's comparisons.

    Comparisons on one prompt are dependent, so tests and intervals count prompts.

    Args:
        comparisons: without ties, which only `nats` includes.
        personal, uniform: accuracies; NaN for a user with ties only.
        better, worse: prompts on which the personal model predicts more, or fewer, comparisons correctly.
        picks_q: sign test on these prompts; nats_q: t test over prompts. Both are one-sided, in the direction of the
            change, and adjusted for the number of tested users (Benjamini and Hochberg): those with `MIN_COMPARISONS`
            comparisons; 1 for the others. Gains and losses are adjusted separately: in one list, many true gains would
            let through as many false losses as there are true ones.
        nats: decrease in log loss per comparison, in nats, with its 95% interval by t over prompts.
        picks_verdict, nats_verdict: by q, at `FALSE_DISCOVERIES`.
    """

    user: str
    comparisons: int
    prompts: int
    personal: float
    uniform: float
    better: int
    worse: int
    picks_q: float
    picks_verdict: Change
    nats: Estimate
    nats_q: float
    nats_verdict: Change

    @property
    def gain(self) -> float:
        """Gain in accuracy."""
        return self.personal - self.uniform

    @property
    def is_tested(self) -> bool:
        """Whether the user has `MIN_COMPARISONS` comparisons or more; the verdicts of the others are `unclear`."""
        return self.comparisons >= MIN_COMPARISONS

    @property
    def half_width(self) -> float:
        """Half of the width of the interval of `nats`."""
        return self.nats.high - self.nats.value


@dataclass(frozen=True)
class UserResults:
    """Every user the model knows, by decrease in log loss, the greatest loss first."""

    people: tuple[UserResult, ...]

    @property
    def enough(self) -> tuple[UserResult, ...]:
        """Users with `MIN_COMPARISONS` comparisons or more; the figures of the others are mostly noise."""
        return tuple(one for one in self.people if one.is_tested)

    @property
    def untested(self) -> int:
        """Number of users with fewer comparisons: `unclear`, because no test is made."""
        return len(self.people) - len(self.enough)

    @property
    def worst(self) -> UserResult | None:
        """The one of these users with the lowest accuracy of the personal model."""
        return min(self.enough, key=lambda one: (one.personal, one.user), default=None)

    def count(self, measure: Literal["picks", "nats"]) -> Counter[Change]:
        """Number of users per verdict."""
        return Counter(getattr(result, f"{measure}_verdict") for result in self.people)

    @property
    def losers(self) -> tuple[UserResult, ...]:
        """Users who clearly lose, in picks or in nats."""
        return tuple(p for p in self.people if "loses" in (p.picks_verdict, p.nats_verdict))


def user_results(
    personal: Array, uniform: Array, p: Array, users: Sequence[str], prompts: Sequence[str]
) -> UserResults:
    """The change for every user, from margins [n] of the two models."""
    right = np.stack([correct(margin, p) for margin in (personal, uniform)])
    nats_gain = nll(uniform, p) - nll(personal, p)
    names, user = np.unique(np.asarray(users, np.str_), return_inverse=True)
    user_ids, prompt = names.tolist(), np.unique(np.asarray(prompts), return_inverse=True)[1].astype(np.int64)
    rows = np.split(np.argsort(user, kind="stable"), np.cumsum(np.bincount(user))[:-1]) if user_ids else []
    picks = [_sign_test(right[0][i] - right[1][i], prompt[i]) for i in rows]
    nats = [_mean(nats_gain[i], prompt[i]) for i in rows]
    tested = np.array([(~np.isnan(right[0][i])).sum() >= MIN_COMPARISONS for i in rows], np.bool_)
    picks_q, nats_q = (_adjusted(np.array([ps for *_, ps in tests]), tested) for tests in (picks, nats))
    people = []
    for k, name in enumerate(user_ids):
        decided = ~np.isnan(right[0][rows[k]])
        accuracy = right[:, rows[k][decided]].mean(1) if decided.any() else np.full(2, np.nan)
        (better, worse, _), (estimate, _) = picks[k], nats[k]
        result = UserResult(
            user=name,
            comparisons=int(decided.sum()),
            prompts=len(set(prompt[rows[k]].tolist())),
            personal=float(accuracy[0]),
            uniform=float(accuracy[1]),
            better=better,
            worse=worse,
            picks_q=float(picks_q[k]),
            picks_verdict=_verdict(better - worse, float(picks_q[k])),
            nats=estimate,
            nats_q=float(nats_q[k]),
            nats_verdict=_verdict(estimate.value, float(nats_q[k])),
        )
        people.append(result)
    people.sort(key=lambda one: (one.nats.value, one.user))
    return UserResults(tuple(people))


def _adjusted(p: Array, tested: NDArray[np.bool_]) -> Array:
    """q [n] from p of a gain and of a loss [n, 2], in the direction of the change; 1 for users who are not tested."""
    q = np.ones(len(p))
    if tested.any():
        both = stats.false_discovery_control(p[tested], axis=0)
        q[tested] = np.take_along_axis(both, p[tested].argmin(1)[:, None], axis=1)[:, 0]
    return q


def _verdict(change: float, q: float) -> Change:
    if q > FALSE_DISCOVERIES or change == 0:
        return "unclear"
    return "gains" if change > 0 else "loses"


def _sign_test(change: Array, prompt: Ints) -> tuple[int, int, tuple[float, float]]:
    """(prompts won, prompts lost, (p of a gain, p of a loss)); a prompt is won if its changes sum to more than 0."""
    sums = _by_prompt(np.nan_to_num(change), prompt)[0]
    better, worse = int((sums > 0).sum()), int((sums < 0).sum())
    if not better + worse:
        return 0, 0, (1.0, 1.0)
    gain, loss = (float(stats.binomtest(k, better + worse, alternative="greater").pvalue) for k in (better, worse))
    return better, worse, (gain, loss)


def _mean(values: Array, prompt: Ints) -> tuple[Estimate, tuple[float, float]]:
    """(mean with its 95% interval, (p of a gain, p of a loss)), all by t over prompts; no test with one prompt."""
    sums, counts = _by_prompt(values, prompt)
    k, value = len(sums), float(values.mean())
    if k < 2:
        return Estimate(value, float("-inf"), float("inf")), (1.0, 1.0)
    error = float(np.sqrt(k / (k - 1) * ((sums - value * counts) ** 2).sum()) / counts.sum())
    half_width = float(stats.t.ppf(0.975, k - 1)) * error
    if error == 0.0:
        return Estimate(value, value, value), (float(value <= 0.0), float(value >= 0.0))
    gain, loss = stats.t.sf([value / error, -value / error], k - 1).tolist()
    return Estimate(value, value - half_width, value + half_width), (gain, loss)


def _by_prompt(values: Array, prompt: Ints) -> tuple[Array, Array]:
    """(sums, counts) per prompt."""
    index = np.unique(prompt, return_inverse=True)[1]
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)
