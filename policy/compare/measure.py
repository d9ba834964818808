"""The figures of a comparison. Numbers in, numbers out; everything is averaged within a person first."""

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
    """What an arm takes.

    Args:
        training: seconds of its own run; `None` where nobody measured it, 0 where nothing is trained for it.
        needed: seconds of all runs that it is made of, its own among them.
        tokens, seconds: drawn, and spent, for one answer; `None` for answers that nobody drew.
    """

    training: float | None
    needed: float | None
    tokens: float | None
    seconds: float | None


@dataclass(frozen=True)
class Figures:
    """An arm over some people; intervals by bootstrap over them and, where they share prompts, over prompts.

    Args:
        people: how many.
        gold: mean gold reward.
        gain: the same less the base's for the same prompt and person.
        wins: against the base, a tie half, in [0, 1].
        kl: nats from the base in an answer; for best of N the most it can be.
        surprise: of the base, nats in a token of an answer; far above what its own answers are to it, an arm has left
            language.
        words: length of an answer.
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
    """An arm: everybody, each group, and what its answers look like.

    Args:
        kind: how it comes to its answers; of `best of`, `kl` is a bound.
        lengths: words of an answer, mean and standard error, by person, one group's people after another's.
        empty: share of empty answers.
        cut: share of answers that ran to the most tokens there may be; `None` where nobody drew them.
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
    """All arms, in order, and who wins against whom; of those that answer strangers, the arm that knows them.

    `leads` holds how much more one arm's answers are worth than another's to the same prompts for the same people, by
    (arm, arm): everybody under "", and each group.
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
        """JSON-ready; an interval without an end is null."""
        pairs = {
            a: {b: asdict(self.matrix.rates[a, b].user) for b in self.matrix.arms if a != b} for a in self.matrix.arms
        }
        arms = {arm.name: {k: v for k, v in asdict(arm).items() if k != "name"} for arm in self.arms}
        found: dict[str, Any] = plain(
            {"base": self.base, "unit": self.unit, "groups": self.groups, "arms": arms, "win_rates": pairs}
        )
        return found


@dataclass(frozen=True)
class Answered:
    """An arm's answers to the cases, in their order, and what they are worth.

    Args:
        rows: as `answering` keeps them.
        best_of: N, where an answer is the best of so many; 0 elsewhere.
        training, needed: as in `Cost`.
        known_by: of `stranger`, the arm of the same run that answers the people it knows, if there is one.
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
        """The answers."""
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
    """Everything that is told of the arms."""
    users, prompts = np.array([c.user_id for c in cases]), np.array([prompt_key(c.prompt) for c in cases])
    group = np.array([groups[user] for user in users])
    sizes = {name: len(set(users[group == name])) for name in sorted(set(group.tolist()))}
    order = sorted(sizes, key=lambda name: (-sizes[name], name))
    people = sorted(set(users.tolist()), key=lambda user: (order.index(groups[user]), user))
    found = []
    for name, arm in arms.items():
        wins = 0.5 * (1.0 + np.sign(arm.gold - arms[base].gold))
        kl, surprise = divergences(arm), _column(arm, "surprise")
        length = np.array([count_words(text) for text in arm.texts], np.float64)
        gain = arm.gold - arms[base].gold
        columns = {"gold": arm.gold, "gain": gain, "wins": wins, "kl": kl, "surprise": surprise, "words": length}

        def figures(part: Array, columns: Mapping[str, Array | None] = columns) -> Figures:
            who, asked = users[part], prompts[part]
            means: dict[str, Any] = {
                k: None if c is None else over_both(c[part], who, asked) for k, c in columns.items()
            }
            return Figures(len(set(who)), **means)

        everybody = figures(np.ones(len(users), np.bool_))
        each = {one: figures(group == one) for one in order}
        cut, cost = _cut(arm), Cost(arm.training, arm.needed, _mean(arm, "tokens"), _mean(arm, "seconds"))
        lengths = {user: _mean_and_error(length[users == user]) for user in people}
        empty = float(np.mean([not text for text in arm.texts]))
        found.append(Measured(name, everybody, each, arm.kind, lengths, empty, cut, cost))
    matrix = win_matrix(judge, cases, {name: arms[name].texts for name in in_matrix})
    known_by = {name: arm.known_by for name, arm in arms.items() if arm.known_by is not None}
    whom = {"": np.ones(len(users), np.bool_)} | {one: group == one for one in order}
    leads = {
        one: {
            (a, b): over_both(arms[a].gold[part] - arms[b].gold[part], users[part], prompts[part])
            for a, b in permutations(arms, 2)
        }
        for one, part in whom.items()
    }
    return Result(base, unit, {name: sizes[name] for name in order}, tuple(found), matrix, known_by, leads)


def divergences(arm: Answered) -> Array | None:
    """Nats from the base, [n], whose mean is KL(arm | base): of drawn answers log pi - log pi_base, of best of N the
    bound log N - (N - 1) / N; `None` where neither is known."""
    if arm.best_of:
        return np.full(len(arm.rows), float(kl_bound(arm.best_of)))
    if any(row.get("logp") is None for row in arm.rows):
        return None
    return np.array([row["logp"] - row["base_logp"] for row in arm.rows], np.float64)


def _column(arm: Answered, name: str) -> Array | None:
    """What every row has under that name, [n]; `None` where some have nothing."""
    values = [row.get(name) for row in arm.rows]
    return None if None in values else np.array(values, np.float64)


def _mean_and_error(values: Array) -> tuple[float, float]:
    """Mean, and its standard error; NaN of a single value."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def _cut(arm: Answered) -> float | None:
    known = [not row["ended"] for row in arm.rows if "ended" in row]
    return float(np.mean(known)) if known else None


def _mean(arm: Answered, column: str) -> float | None:
    values = [row[column] for row in arm.rows if column in row]
    return float(np.mean(values)) if values else None
