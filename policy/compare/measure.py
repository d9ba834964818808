"""The figures of a comparison. All means are over users of each user's mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import permutations
from typing import Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from policy.judging.judges import Judge, WinMatrix, win_matrix
from prm.checks import Natural, NonNegative
from prm.data.baselines import count_words
from prm.data.comparison import Comparison, prompt_key
from prm.io.rows import Json
from prm.io.tables import plain
from prm.metrics import Array, Estimate, over_both
from rerank.curves.estimators import kl_bound

Kind = Literal["base", "chosen", "prompted", "best of", "trained", "generic"]


@dataclass(frozen=True)
class Cost:
    """The cost of an arm.

    Args:
        training: seconds of its run's training; `None` if they were not measured, 0 if nothing is trained for it.
        needed: seconds of all runs that it depends on, its own included.
        tokens, seconds: sampled tokens and seconds spent per response; `None` if none was sampled.
    """

    training: float | None
    needed: float | None
    tokens: float | None
    seconds: float | None


@dataclass(frozen=True)
class Figures:
    """An arm over some users; intervals by bootstrap over users and, if they share prompts, over prompts.

    Args:
        people: number of users.
        gold: mean gold reward.
        gain: gold reward minus that of the base for the same prompt and user.
        wins: win rate against the base, a tie is half a win, in [0, 1].
        kl: KL divergence from the base, nats per response; for best of N its upper bound.
        surprise: log loss of the base, nats per token of the words of responses that are not empty; far above that of
            the base's own responses, the arm's language is broken. `None` if all are empty.
        empty: share of empty responses.
        words: length of a response.
    """

    people: int
    gold: Estimate
    gain: Estimate
    wins: Estimate
    kl: Estimate | None
    surprise: Estimate | None
    empty: float
    words: Estimate


@dataclass(frozen=True)
class Measured:
    """The figures of an arm for all users and each group, and statistics of its responses.

    Args:
        kind: how its responses are made; `kl` of `best of` is a bound.
        lengths: words per response, mean and standard error, by user, ordered by group.
        cut: share of responses that were cut at max_new_tokens; `None` if none was sampled.
    """

    name: str
    all: Figures
    groups: Mapping[str, Figures]
    kind: Kind
    lengths: Mapping[str, tuple[float, float]]
    cut: float | None
    cost: Cost


@dataclass(frozen=True)
class Result:
    """All arms in order, and the win rates between them.

    `known_by` maps an arm that samples as the generic user to the arm of the same run with users. `leads` holds the
    difference in gold reward between two arms on the same prompts and users, by (arm, arm), for each group and, under
    "", for all users.
    """

    base: str
    unit: str
    groups: Mapping[str, int]
    arms: tuple[Measured, ...]
    matrix: WinMatrix
    known_by: Mapping[str, str]
    leads: Mapping[str, Mapping[tuple[str, str], Estimate]]

    def arm(self, name: str) -> Measured:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def to_dict(self) -> dict[str, Json]:
        """JSON-ready; infinite ends of intervals are null."""
        pairs = {
            a: {b: asdict(self.matrix.rates[a, b].user) for b in self.matrix.arms if a != b} for a in self.matrix.arms
        }
        arms = {arm.name: {k: v for k, v in asdict(arm).items() if k != "name"} for arm in self.arms}
        return plain({"base": self.base, "unit": self.unit, "groups": self.groups, "arms": arms, "win_rates": pairs})


class Candidate(TypedDict):
    """A response of a pool with its rewards; `None` for an empty response.

    `personal` and `generic`: by the arm's reward model, for the user and for the generic user, if it knows users.
    `uniform`: by the tuned uniform model, if there is one.
    """

    response: str
    personal: NotRequired[float | None]
    generic: NotRequired[float | None]
    uniform: NotRequired[float | None]


class DrawnRow(TypedDict):
    """A response; sampled ones with `tokens`, `seconds` spent and whether an end token `ended` them.

    `logp` and `base_logp`: its log-probability under its policy and the base, nats, if one response was sampled.
    `pool`: the N responses that it is the best of.
    """

    response: str
    tokens: NotRequired[Natural]
    seconds: NotRequired[NonNegative]
    ended: NotRequired[bool]
    logp: NotRequired[float]
    base_logp: NotRequired[float]
    pool: NotRequired[list[Candidate]]


class AnswerRow(DrawnRow):
    """A response with its `surprise`, log loss of the base in nats per token of its words; `None` if it is empty."""

    surprise: float | None


@dataclass(frozen=True)
class Answered:
    """An arm's responses to the cases, in their order, and their gold rewards.

    Args:
        rows: all with the same keys.
        best_of: N of best of N; otherwise 0.
        training, needed: as in `Cost`.
        known_by: for `generic`, the arm of the same run with users, if there is one.
    """

    rows: Sequence[AnswerRow]
    gold: Array
    kind: Kind
    best_of: int
    training: float | None
    needed: float | None
    known_by: str | None = None

    @property
    def texts(self) -> list[str]:
        """The responses."""
        return [row["response"] for row in self.rows]


def measure(
    arms: Mapping[str, Answered],
    base: str,
    cases: Sequence[Comparison],
    groups: Mapping[str, str],
    judge: Judge,
    unit: str,
    in_matrix: Sequence[str],
) -> Result:
    """Compute all figures of the arms."""
    users, prompts = np.array([c.user_id for c in cases]), np.array([prompt_key(c.prompt) for c in cases])
    group = np.array([groups[user] for user in users])
    sizes = {name: len(set(users[group == name])) for name in sorted(set(group.tolist()))}
    order = sorted(sizes, key=lambda name: (-sizes[name], name))
    by_group = sorted(set(users.tolist()), key=lambda user: (order.index(groups[user]), user))
    parts = {"": np.ones(len(users), np.bool_)} | {one: group == one for one in order}

    def mean(part: NDArray[np.bool_], values: Array) -> Estimate:
        known = part & ~np.isnan(values)
        return over_both(values[known], users[known], prompts[known])

    measured = []
    for name, arm in arms.items():
        figures = {
            one: _figures(arm, arms[base], len(set(users[part])), part, partial(mean, part))
            for one, part in parts.items()
        }
        overall, length = figures.pop(""), _lengths(arm)
        cut, cost = _cut(arm), Cost(arm.training, arm.needed, _mean(arm, "tokens"), _mean(arm, "seconds"))
        lengths = {user: _mean_and_error(length[users == user]) for user in by_group}
        measured.append(Measured(name, overall, figures, arm.kind, lengths, cut, cost))
    matrix = win_matrix(judge, cases, {name: arms[name].texts for name in in_matrix})
    known_by = {name: arm.known_by for name, arm in arms.items() if arm.known_by is not None}
    leads = {
        one: {(a, b): mean(part, arms[a].gold - arms[b].gold) for a, b in permutations(arms, 2)}
        for one, part in parts.items()
    }
    return Result(base, unit, {name: sizes[name] for name in order}, tuple(measured), matrix, known_by, leads)


def _figures(
    arm: Answered, base: Answered, people: int, part: NDArray[np.bool_], mean: Callable[[Array], Estimate]
) -> Figures:
    """The figures of an arm over the responses in `part`; `mean` takes values of all responses, [n], NaN for none."""
    gain, kl = arm.gold - base.gold, divergences(arm)
    surprise = np.array([row["surprise"] for row in arm.rows], np.float64)  # `None` becomes NaN
    is_empty = np.isnan(surprise)[part]
    return Figures(
        people,
        gold=mean(arm.gold),
        gain=mean(gain),
        wins=mean(0.5 * (1.0 + np.sign(gain))),
        kl=None if kl is None else mean(kl),
        surprise=None if is_empty.all() else mean(surprise),
        empty=float(is_empty.mean()),
        words=mean(_lengths(arm)),
    )


def _lengths(arm: Answered) -> Array:
    """Words of each response, [n]."""
    return np.array([count_words(text) for text in arm.texts], np.float64)


def divergences(arm: Answered) -> Array | None:
    """Nats, [n], whose mean is KL(arm | base): log pi - log pi_base of sampled responses, for best of N the bound
    log N - (N - 1) / N; `None` if neither is known."""
    if arm.best_of:
        return np.full(len(arm.rows), float(kl_bound(arm.best_of)))
    if not all("logp" in row and "base_logp" in row for row in arm.rows):
        return None
    return np.array([row["logp"] - row["base_logp"] for row in arm.rows], np.float64)


def _mean_and_error(values: Array) -> tuple[float, float]:
    """Mean and its standard error, which is NaN for a single value."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def _cut(arm: Answered) -> float | None:
    known = [not row["ended"] for row in arm.rows if "ended" in row]
    return float(np.mean(known)) if known else None


def _mean(arm: Answered, column: Literal["tokens", "seconds"]) -> float | None:
    values = [row[column] for row in arm.rows if column in row]
    return float(np.mean(values)) if values else None
