"""What a comparison of user models shows, in words that follow its intervals, and which model to train."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from prm.errors import counted
from prm.evaluation.compare.config import BASELINES, NAMES, NETWORKS, Name
from prm.evaluation.compare.summary import (
    BEST_BASELINE,
    BEST_PERSONAL,
    MANY_PEOPLE,
    Comparisons,
    Gains,
    best_validated,
)
from prm.evaluation.rows import LENGTH_SIGN
from prm.evaluation.verdict import FEWEST
from prm.io.formatting import estimated, figure
from prm.io.formatting import gain as in_words
from prm.metrics import FEW_PEOPLE, Estimate

State = Literal["better", "no better", "worse", "too few", "no personal model"]

MARGIN_NATS, MARGIN_POINTS = 0.01, 0.005  # a loss below both counts as none
_TRAINABLE = ("uniform", "uniform_kernel")
_RULES = {"length_sign": LENGTH_SIGN}  # names in words


@dataclass(frozen=True)
class CompareVerdict:
    """The outcome.

    Args:
        says: in a few sentences.
        state: of the personal models, chosen by cross-validation, against the best baseline: `better` by log loss or by
            accuracy and worse by neither, clearly `worse` by one, or `no better`.
        train: the model to train; `None` if a rule predicts best.
    """

    says: list[str]
    state: State
    train: Name | None


def verdict_on(result: Comparisons) -> CompareVerdict:
    """The verdict on a comparison."""
    baseline = _lowest(result, result.baselines)
    trainable = _lowest(result, [row.name for row in result.rows if row.name in _TRAINABLE])
    says = [f"The best baseline is {_often(result.baselines, result.parts)}: {_figures(result, BEST_BASELINE)}."]
    if not result.winners:
        return CompareVerdict([*says, "No personal model was compared."], "no personal model", trainable)
    winner = _lowest(result, result.winners)
    gains = result.row(BEST_PERSONAL).gains
    assert gains is not None
    state = _state(result, gains)
    says += [_sentence(result, gains, state), *_gains(gains), *_flip(result), *_losers(result)]
    personal = winner if state == "better" else None
    if winner in NETWORKS:
        says.append(f"{winner} has the lowest log loss by cross-validation, but prm train does not train it.")
        personal = _best_trained(result)
    if personal is not None:
        return CompareVerdict([*says, f"Train {personal}."], state, personal)
    if baseline not in _TRAINABLE:
        rule = _RULES.get(baseline, baseline)
        says.append(f"Train nothing yet: the rule {rule} predicts best. The best model without users is {trainable}.")
        return CompareVerdict(says, state, None)
    says.append("Collect more comparisons." if state == "too few" else f"Train {trainable}.")
    return CompareVerdict(says, state, trainable)


def never_worse(nats: Estimate, points: Estimate) -> bool:
    """Whether the intervals of two gains exclude a loss of 0.01 nats and of 0.5 points: not inferior.

    Args:
        points: difference of two accuracies in [0, 1].
    """
    return nats.low >= -MARGIN_NATS and points.low >= -MARGIN_POINTS


def _best_trained(result: Comparisons) -> Name | None:
    """The best personal model that `prm train` trains, if it is better than the best baseline."""
    names = [row.name for row in result.rows if row.name in NAMES and row.name not in (*BASELINES, *NETWORKS)]
    best = _lowest(result, names) if names else None
    gains = result.row(best).gains if best else None
    return best if gains is not None and _state(result, gains) == "better" else None


def _state(result: Comparisons, gains: Gains) -> State:
    if result.decided < FEWEST or result.people < FEW_PEOPLE:
        return "too few"
    both = (gains.nats, gains.points)
    if any(gain.high < 0.0 for gain in both):
        return "worse"
    return "better" if any(gain.low > 0.0 for gain in both) else "no better"


def _sentence(result: Comparisons, gains: Gains, state: State) -> str:
    name = f"The best personal model ({_often(result.winners, result.parts)})"
    if state == "too few":
        size = f"{counted(result.decided, 'comparison')} without ties, {counted(result.people, 'user')}"
        return f"There is too little data for a verdict: {size}."
    if state == "worse":
        return f"{name} is worse than the best baseline."
    if state == "no better":
        return f"{name} is not clearly better than the best baseline."
    accuracy, loss = gains.points.low > 0.0, gains.nats.low > 0.0
    if accuracy and loss:
        return f"{name} is better than the best baseline by log loss and by accuracy."
    clear, unclear = ("accuracy", "log loss") if accuracy else ("log loss", "accuracy")
    return f"{name} is better than the best baseline by {clear}, but not clearly by {unclear}."


def _gains(gains: Gains) -> list[str]:
    """How much better the best personal model is, over comparisons and over people."""
    means = (("comparisons", gains.points, gains.nats), ("users", gains.points_macro, gains.nats_macro))
    return [f"Mean over {what}: {_points(points)}; {_nats(nats)}." for what, points, nats in means]


def _flip(result: Comparisons) -> list[str]:
    follows = result.row(BEST_PERSONAL).follows
    if follows is None:
        return []
    unclear = "It follows nobody" if follows.high <= 0.0 else "Whether it follows users is unclear"
    return [
        f"{'It follows users' if follows.low > 0.0 else unclear}: the flip test, with the training labels of half of "
        f"the users reversed, gives {estimated(follows, scale=100.0, sign='+', unit=' points')}."
    ]


def _losers(result: Comparisons) -> list[str]:
    """Which groups of users, by their number of comparisons, the best personal model may serve worse."""
    groups = [(g, g.gains[BEST_PERSONAL]) for g in result.groups if g.people >= MANY_PEOPLE]
    worse = [g for g, gain in groups if gain.points.high < 0.0 or gain.nats.high < 0.0]
    unsure = [g for g, gain in groups if g not in worse and not never_worse(gain.nats, gain.points)]
    found = []
    for members, what in ((worse, "are"), (unsure, "may be")):
        if members:
            counts = " or ".join(f"{g.least} and more" if g.most is None else f"{g.least} to {g.most}" for g in members)
            found.append(f"Users with {counts} training comparisons {what} worse off than with the best baseline.")
    if groups and not found:
        found.append(f"Of groups of {MANY_PEOPLE} or more users, by their number of comparisons, none is worse off.")
    return found


def _lowest(result: Comparisons, names: Collection[str]) -> Name:
    """The model that does best by cross-validation."""
    return best_validated({name: result.row(name) for name in NAMES if name in names})


def _often(counts: dict[str, int], parts: int) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    if len(ranked) == 1:
        return ranked[0][0]
    (first, often), *rest = ranked
    return ", ".join([f"{first} in {often} of {parts} parts", *(f"{name} in {n}" for name, n in rest)])


def _figures(result: Comparisons, name: str) -> str:
    row = result.row(name)
    return f"accuracy {figure(100 * row.accuracy.value)}%, log loss {figure(row.nll.value, 3)} nats"


def _points(gain: Estimate) -> str:
    return in_words(gain, "accuracy", ("higher", "lower"), "points", 1, 100.0)


def _nats(gain: Estimate) -> str:
    return in_words(gain, "log loss", ("lower", "higher"), "nats", 3)
