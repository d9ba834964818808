"""The figures of a comparison. All means are over users of each user's mean."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np

from policy.judging.judges import Judge, WinMatrix, win_matrix
from prm.data.baselines import count_words
from prm.data.comparison import Comparison, prompt_key
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
        surprise: log loss of the base, nats per token; far above that of the base's own responses, the arm's language
            is broken.
        words: length of a response.
    """

    people: int
    gold: Estimate
    gain: Estimate
    wins: Estimate
    kl: Estimate | None
    surprise: Estimate | None
    words: Estimate


@dataclass(frozen=True)
class Measured:
    """The figures of an arm for all users and each group, and statistics of its responses.

    Args:
        kind: how its responses are made; `kl` of `best of` is a bound.
        lengths: words per response, mean and standard error, by user, ordered by group.
        empty: share of empty responses.
        cut: share of responses that were cut at max_new_tokens; `None` if none was sampled.
    """

    name: str
    all: Figures
    groups: Mapping[str, Figures]
    kind: Kind
    lengths: Mapping[str, tuple[float, float]]
    empty: float
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; infinite ends of intervals are null."""
        pairs = {
            a: {b: asdict(self.matrix.rates[a, b].user) for b in self.matrix.arms if a != b} for a in self.matrix.arms
        }
        arms = {arm.name: {k: v for k, v in asdict(arm).items() if k != "name"} for arm in self.arms}
        ready: dict[str, Any] = plain(
            {"base": self.base, "unit": self.unit, "groups": self.groups, "arms": arms, "win_rates": pairs}
        )
        return ready


@dataclass(frozen=True)
class Answered:
    """An arm's responses to the cases, in their order, and their gold rewards.

    Args:
        rows: as `answering` stores them.
        best_of: N of best of N; otherwise 0.
        training, needed: as in `Cost`.
        known_by: for `generic`, the arm of the same run with users, if there is one.
    """

    rows: Sequence[Mapping[str, Any]]
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
    measured = []
    for name, arm in arms.items():
        wins = 0.5 * (1.0 + np.sign(arm.gold - arms[base].gold))
        kl, surprise = divergences(arm), _column(arm, "surprise")
        length = np.array([count_words(text) for text in arm.texts], np.float64)
        gain = arm.gold - arms[base].gold
        columns = {"gold": arm.gold, "gain": gain, "wins": wins, "kl": kl, "surprise": surprise, "words": length}

        def figures(part: Array, columns: Mapping[str, Array | None] = columns) -> Figures:
            means: dict[str, Any] = {
                k: None if c is None else over_both(c[part], users[part], prompts[part]) for k, c in columns.items()
            }
            return Figures(len(set(users[part])), **means)

        overall = figures(np.ones(len(users), np.bool_))
        each = {one: figures(group == one) for one in order}
        cut, cost = _cut(arm), Cost(arm.training, arm.needed, _mean(arm, "tokens"), _mean(arm, "seconds"))
        lengths = {user: _mean_and_error(length[users == user]) for user in by_group}
        empty = float(np.mean([not text for text in arm.texts]))
        measured.append(Measured(name, overall, each, arm.kind, lengths, empty, cut, cost))
    matrix = win_matrix(judge, cases, {name: arms[name].texts for name in in_matrix})
    known_by = {name: arm.known_by for name, arm in arms.items() if arm.known_by is not None}
    parts = {"": np.ones(len(users), np.bool_)} | {one: group == one for one in order}
    leads = {
        one: {
            (a, b): over_both(arms[a].gold[part] - arms[b].gold[part], users[part], prompts[part])
            for a, b in permutations(arms, 2)
        }
        for one, part in parts.items()
    }
    return Result(base, unit, {name: sizes[name] for name in order}, tuple(measured), matrix, known_by, leads)


def divergences(arm: Answered) -> Array | None:
    """Nats, [n], whose mean is KL(arm | base): log pi - log pi_base of sampled responses, for best of N the bound
    log N - (N - 1) / N; `None` if neither is known."""
    if arm.best_of:
        return np.full(len(arm.rows), float(kl_bound(arm.best_of)))
    if any(row.get("logp") is None for row in arm.rows):
        return None
    return np.array([row["logp"] - row["base_logp"] for row in arm.rows], np.float64)


def _column(arm: Answered, name: str) -> Array | None:
    """The values of a column, [n]; `None` if some rows lack it."""
    values = [row.get(name) for row in arm.rows]
    return None if None in values else np.array(values, np.float64)


def _mean_and_error(values: Array) -> tuple[float, float]:
    """Mean and its standard error, which is NaN for a single value."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def _cut(arm: Answered) -> float | None:
    known = [not row["ended"] for row in arm.rows if "ended" in row]
    return float(np.mean(known)) if known else None


def _mean(arm: Answered, column: str) -> float | None:
    values = [row[column] for row in arm.rows if column in row]
    return float(np.mean(values)) if values else None
