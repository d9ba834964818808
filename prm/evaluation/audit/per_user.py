"""Who gains by personalisation and who loses, against the tuned uniform model, as far as their judgements can tell."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from prm.data.profile.arrays import Ints
from prm.metrics import LEAST_JUDGED, Array, Estimate, correct, nll

Change = Literal["gains", "loses", "cannot be told"]
FALSE_DISCOVERIES = 0.05  # expected share of wrong names among those who are said to gain or to lose


@dataclass(frozen=True)
class UserResult:
    """The personal model against the uniform one on one person's judgements.

    Judgements of one prompt hang together, so prompts are what tests and intervals count.

    Args:
        comparisons: without ties, which only `nats` looks at.
        personal, uniform: accuracies; NaN for a person of ties alone.
        better, worse: prompts on which the personal model gets more, or less, right.
        picks_q: sign test on these prompts; nats_q: t test over prompts. Both are one-sided, the way the change goes,
            and adjusted for the number of people who are tested (Benjamini and Hochberg): those with `LEAST_JUDGED`
            judgements; 1 for the others. Gaining and losing are adjusted apart: in one list, many who gain would let
            through as many names by chance as the few who lose.
        nats: nats saved per judgement, with its 95% interval by t over prompts.
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
        """Accuracy won."""
        return self.personal - self.uniform

    @property
    def reach(self) -> float:
        """Half of the interval of `nats`."""
        return self.nats.high - self.nats.value


@dataclass(frozen=True)
class UserResults:
    """Everyone the model knows, by nats saved, the greatest loss first."""

    people: tuple[UserResult, ...]

    @property
    def enough(self) -> tuple[UserResult, ...]:
        """Those with `LEAST_JUDGED` or more judgements; of the others chance alone puts some first."""
        return tuple(one for one in self.people if one.comparisons >= LEAST_JUDGED)

    @property
    def worst(self) -> UserResult | None:
        """Whom, of those, the personal model gets right least often."""
        return min(self.enough, key=lambda one: (one.personal, one.user), default=None)

    def count(self, measure: Literal["picks", "nats"]) -> Counter[Change]:
        """People per verdict."""
        return Counter(getattr(person, f"{measure}_verdict") for person in self.people)

    @property
    def losers(self) -> tuple[UserResult, ...]:
        """Those who surely lose, in picks or in nats."""
        return tuple(p for p in self.people if "loses" in (p.picks_verdict, p.nats_verdict))


def find_people(personal: Array, uniform: Array, p: Array, users: Sequence[str], prompts: Sequence[str]) -> UserResults:
    """Everyone's change, from margins [n] of the two models."""
    right = np.stack([correct(margin, p) for margin in (personal, uniform)])
    saved = nll(uniform, p) - nll(personal, p)
    names, prompt = np.asarray(users), np.unique(np.asarray(prompts), return_inverse=True)[1].astype(np.int64)
    order = sorted(set(users))
    mine = [np.flatnonzero(names == user) for user in order]
    picks = [_sign_test(right[0][i] - right[1][i], prompt[i]) for i in mine]
    nats = [_mean(saved[i], prompt[i]) for i in mine]
    tested = np.array([(~np.isnan(right[0][i])).sum() >= LEAST_JUDGED for i in mine], np.bool_)
    picks_q, nats_q = (_adjusted(np.array([ps for *_, ps in found]), tested) for found in (picks, nats))
    people = []
    for k, user in enumerate(order):
        decided = ~np.isnan(right[0][mine[k]])
        accuracy = right[:, mine[k][decided]].mean(1) if decided.any() else np.full(2, np.nan)
        (better, worse, _), (estimate, _) = picks[k], nats[k]
        person = UserResult(
            user=user,
            comparisons=int(decided.sum()),
            prompts=len(set(prompt[mine[k]].tolist())),
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
        people.append(person)
    people.sort(key=lambda one: (one.nats.value, one.user))
    return UserResults(tuple(people))


def _adjusted(p: Array, tested: NDArray[np.bool_]) -> Array:
    """q [n] from p of a gain and of a loss [n, 2], the way each change goes; 1 for those who are not tested."""
    q = np.ones(len(p))
    if tested.any():
        both = stats.false_discovery_control(p[tested], axis=0)
        q[tested] = np.take_along_axis(both, p[tested].argmin(1)[:, None], axis=1)[:, 0]
    return q


def _verdict(change: float, q: float) -> Change:
    if q > FALSE_DISCOVERIES or change == 0:
        return "cannot be told"
    return "gains" if change > 0 else "loses"


def _sign_test(change: Array, prompt: Ints) -> tuple[int, int, tuple[float, float]]:
    """(prompts won, prompts lost, p of a gain and of a loss); a prompt counts by the sum of its judgements."""
    sums = _by_prompt(np.nan_to_num(change), prompt)[0]
    better, worse = int((sums > 0).sum()), int((sums < 0).sum())
    if not better + worse:
        return 0, 0, (1.0, 1.0)
    gain, loss = (float(stats.binomtest(k, better + worse, alternative="greater").pvalue) for k in (better, worse))
    return better, worse, (gain, loss)


def _mean(values: Array, prompt: Ints) -> tuple[Estimate, tuple[float, float]]:
    """(mean with its 95% interval, p of a gain and of a loss), all by t over prompts; one prompt tells nothing."""
    sums, counts = _by_prompt(values, prompt)
    k, value = len(sums), float(values.mean())
    if k < 2:
        return Estimate(value, float("-inf"), float("inf")), (1.0, 1.0)
    error = float(np.sqrt(k / (k - 1) * ((sums - value * counts) ** 2).sum()) / counts.sum())
    reach = float(stats.t.ppf(0.975, k - 1)) * error
    if error == 0.0:
        return Estimate(value, value, value), (float(value <= 0.0), float(value >= 0.0))
    gain, loss = stats.t.sf([value / error, -value / error], k - 1).tolist()
    return Estimate(value, value - reach, value + reach), (gain, loss)


def _by_prompt(values: Array, prompt: Ints) -> tuple[Array, Array]:
    """(sums, counts) per prompt."""
    index = np.unique(prompt, return_inverse=True)[1]
    return np.bincount(index, weights=values).astype(np.float64), np.bincount(index).astype(np.float64)
