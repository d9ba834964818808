"""Whether the model prefers length, formats or flagged words more than its users do."""

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
    """How often the response with a feature is preferred, in pairs where exactly one has it, without ties.

    Args:
        name: of the feature.
        people: share of the `pairs`, in [0, 1], in which the user chose it, with its interval by bootstrap over users.
        picks: share in which each model picks it, by name; a tied prediction counts half.
        excess: the first model's share minus the users' share.
    """

    name: str
    pairs: int
    people: Estimate
    picks: dict[str, float]
    excess: Estimate


@dataclass(frozen=True)
class LengthBiasOfUser:
    """One user's shares of the longer response, as in `Bias`, and the correlation of their score with length.

    `correlation` is that of margin and difference in words, with every pair in both orders; NaN if one does not vary.
    """

    user: str
    pairs: int
    person: float
    picks: dict[str, float]
    correlation: float


def picks(margin: Array) -> Array:
    """1 where the model picks the chosen response, 0 where it picks the rejected one, 0.5 for a tied prediction."""
    return np.asarray(0.5 + 0.5 * np.sign(margin))


def has_it(chosen: Sequence[bool], rejected: Sequence[bool]) -> Array:
    """1 where only the chosen response has the feature, 0 where only the rejected one has it, NaN elsewhere, [n]."""
    a, b = np.asarray(chosen, np.bool_), np.asarray(rejected, np.bool_)
    return np.where(a == b, np.nan, a)


def find_bias(name: str, has: Array, margins: Mapping[str, Array], p: Array, users: Sequence[str]) -> Bias | None:
    """The bias of each model, from margins [n] and `has_it` [n]; `None` without a decided pair in which one has it."""
    decided = ~np.isnan(has) & (p != 0.5)
    if not decided.any():
        return None
    taken = {model: taken_by(margin, has)[decided] for model, margin in margins.items()}
    people, user_ids = has[decided], np.asarray(users)[decided]
    first = next(iter(taken.values()))
    means = {model: float(values.mean()) for model, values in taken.items()}
    return Bias(name, int(decided.sum()), estimate(people, user_ids), means, estimate(first - people, user_ids))


def taken_by(margin: Array, has: Array) -> Array:
    """1 where the model picks the response with the feature, 0 where the other, 0.5 for a tied prediction, [n]."""
    picks_chosen = picks(margin)
    return np.where(has == 1.0, picks_chosen, 1.0 - picks_chosen)


def find_formats(
    comparisons: Sequence[Comparison], margins: Mapping[str, Array], p: Array, users: Sequence[str]
) -> list[Bias]:
    """The bias for every format that only one response has in enough pairs, the greatest excess first."""
    biases = []
    for name, rule in FORMATS.items():
        bias = find_bias(name, by_rule(comparisons, rule), margins, p, users)
        if bias is not None and bias.pairs >= LEAST_PAIRS:
            biases.append(bias)
    return sorted(biases, key=lambda bias: (-bias.excess.value, bias.name))


def by_rule(comparisons: Sequence[Comparison], rule: Callable[[str], bool]) -> Array:
    """`has_it` of a rule on texts, which runs once on each distinct text."""
    holds = {text: rule(text) for text in {text for c in comparisons for text in (c.chosen, c.rejected)}}
    return has_it([holds[c.chosen] for c in comparisons], [holds[c.rejected] for c in comparisons])


def find_length(
    comparisons: Sequence[Comparison], margins: Mapping[str, Array], p: Array, users: Sequence[str]
) -> tuple[Bias | None, list[LengthBiasOfUser]]:
    """(bias over all users, bias of each user) for the longer response, on pairs of unequal length in words."""
    difference = longest(comparisons)
    has = np.where(difference == 0, np.nan, difference > 0)
    overall = find_bias(LONGER, has, margins, p, users)
    decided, names = ~np.isnan(has) & (p != 0.5), np.asarray(users)
    taken = {model: taken_by(margin, has) for model, margin in margins.items()}
    first = next(iter(margins.values()))
    people = []
    for user in sorted(set(names[decided].tolist())):
        of_user = decided & (names == user)
        shares = {model: float(values[of_user].mean()) for model, values in taken.items()}
        correlation = correlation_with(first[of_user], difference[of_user])
        people.append(LengthBiasOfUser(user, int(of_user.sum()), float(has[of_user].mean()), shares, correlation))
    return overall, people


def correlation_with(margin: Array, difference: Array) -> float:
    """Correlation of two differences with every pair in both orders, which makes both means 0."""
    size = float(np.sqrt((margin**2).sum() * (difference**2).sum()))
    return float((margin * difference).sum()) / size if size else float("nan")
