"""Does the model go for length, formats or flagged words more than the people it answers do?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prm.data.baselines import longest
from prm.data.comparison import Comparison
from prm.data.profile.artifacts import FORMATS, LEAST_PAIRS
from prm.metrics import Array, Estimate, estimate

LONGER = "has more words"


@dataclass(frozen=True)
class Bias:
    """How often the answer that has something is taken, in pairs where exactly one of the two has it, ties aside.

    Args:
        name: what the answer has.
        people: share of the `pairs` in [0, 1] in which the judge chose it, with its interval by bootstrap over people.
        picks: share in which each model picks it, by name; a tied prediction counts half.
        excess: of the first model, less the judges' share: what it prefers beyond what people do.
    """

    name: str
    pairs: int
    people: Estimate
    picks: dict[str, float]
    excess: Estimate


@dataclass(frozen=True)
class LengthBiasOfUser:
    """One person: shares of the longer answer as in `Bias`, and correlation of the personal score with length.

    `correlation` is that of margin and difference in words, every pair in both orders; NaN where neither varies.
    """

    user: str
    pairs: int
    person: float
    picks: dict[str, float]
    correlation: float


def picks(margin: Array) -> Array:
    """1 where the model picks the chosen answer, 0 where the rejected one, 0.5 for a tied prediction."""
    return np.asarray(0.5 + 0.5 * np.sign(margin))


def has_it(chosen: Sequence[bool], rejected: Sequence[bool]) -> Array:
    """1 where only the chosen answer has it, 0 where only the rejected one, NaN elsewhere, [n]."""
    a, b = np.asarray(chosen, np.bool_), np.asarray(rejected, np.bool_)
    return np.where(a == b, np.nan, a)


def find_bias(name: str, has: Array, margins: Mapping[str, Array], p: Array, users: Sequence[str]) -> Bias | None:
    """The leaning of each model, from margins [n] and `has_it` [n]; `None` without a pair that tells."""
    decided = ~np.isnan(has) & (p != 0.5)
    if not decided.any():
        return None
    taken = {model: taken_by(margin, has)[decided] for model, margin in margins.items()}
    people, who = has[decided], np.asarray(users)[decided]
    first = next(iter(taken.values()))
    means = {model: float(values.mean()) for model, values in taken.items()}
    return Bias(name, int(decided.sum()), estimate(people, who), means, estimate(first - people, who))


def taken_by(margin: Array, has: Array) -> Array:
    """1 where the model picks the answer that has it, 0 where the other, 0.5 for a tied prediction, [n]."""
    mine = picks(margin)
    return np.where(has == 1.0, mine, 1.0 - mine)


def find_formats(
    comparisons: Sequence[Comparison], margins: Mapping[str, Array], p: Array, users: Sequence[str]
) -> list[Bias]:
    """Every format that tells enough pairs apart, the greatest excess first."""
    found = []
    for name, rule in FORMATS.items():
        leaning = find_bias(name, by_rule(comparisons, rule), margins, p, users)
        if leaning is not None and leaning.pairs >= LEAST_PAIRS:
            found.append(leaning)
    return sorted(found, key=lambda leaning: (-leaning.excess.value, leaning.name))


def by_rule(comparisons: Sequence[Comparison], rule: Callable[[str], bool]) -> Array:
    """`has_it` of a rule on texts; each text is looked at once."""
    holds = {text: rule(text) for text in {text for c in comparisons for text in (c.chosen, c.rejected)}}
    return has_it([holds[c.chosen] for c in comparisons], [holds[c.rejected] for c in comparisons])


def find_length(
    comparisons: Sequence[Comparison], margins: Mapping[str, Array], p: Array, users: Sequence[str]
) -> tuple[Bias | None, list[LengthBiasOfUser]]:
    """(everyone together, each person) on pairs of unequal length in words."""
    difference = longest(comparisons)
    has = np.where(difference == 0, np.nan, difference > 0)
    everyone = find_bias(LONGER, has, margins, p, users)
    decided, names = ~np.isnan(has) & (p != 0.5), np.asarray(users)
    taken = {model: taken_by(margin, has) for model, margin in margins.items()}
    first = next(iter(margins.values()))
    people = []
    for user in sorted(set(names[decided].tolist())):
        mine = decided & (names == user)
        shares = {model: float(values[mine].mean()) for model, values in taken.items()}
        correlation = correlation_with(first[mine], difference[mine])
        people.append(LengthBiasOfUser(user, int(mine.sum()), float(has[mine].mean()), shares, correlation))
    return everyone, people


def correlation_with(margin: Array, difference: Array) -> float:
    """Correlation of two differences when every pair enters in both orders, which makes both means 0."""
    size = float(np.sqrt((margin**2).sum() * (difference**2).sum()))
    return float((margin * difference).sum()) / size if size else float("nan")
