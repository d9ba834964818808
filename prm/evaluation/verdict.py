"""The verdict of an evaluation: the personal model against the best of its baselines, in words that follow intervals.

Numbers in, numbers and words out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prm.evaluation.rows import GENERIC, LENGTH_SIGN, LONGEST, PERSONAL, SHUFFLED, UNIFORM, Labels
from prm.io.formatting import difference, figure
from prm.io.formatting import gain as in_words
from prm.metrics import FEW_PEOPLE, Array, Estimate, correct, estimate, nll

BASELINES = (UNIFORM, GENERIC, LONGEST, LENGTH_SIGN)
FEWEST = 30  # decided comparisons; with fewer no interval means anything
WIDE = 0.2  # of accuracy: a wider interval that includes 0 shows only that there is too little data
_DIGITS = 3  # of nats: a difference that prints as 0.000 is none, so that rounding makes no model worse
_ABOUT_ZERO = 0.01  # nats: a smaller advantage over shuffled users counts as none

State = Literal["better", "no better", "worse", "too few"]
Shuffle = Literal["learnt", "unclear", "not learnt", "worse"]


@dataclass(frozen=True)
class Against:
    """The personal model against one other predictor of the same labels, paired by comparison.

    Args:
        name: of the other predictor.
        accuracy: of the other predictor.
        points: accuracy of the personal model minus the other's.
        nats: log loss of the other minus the personal model's; `None` for a rule that gives no probability.
    """

    name: str
    accuracy: Estimate
    points: Estimate
    nats: Estimate | None


@dataclass(frozen=True)
class Verdict:
    """The outcome of an evaluation.

    Args:
        says: the verdict in one line: a sentence for each measure, without the last full stop.
        state: by accuracy: `better` than every baseline, `no better` than one of them, clearly `worse` than one, or
            `too few` comparisons, users or prompts to say.
        beside: the baseline against which the personal model does worst.
        at_chance: those of the personal model and the baselines whose interval of accuracy includes one half.
        against: each baseline.
        shuffled: the personal model with users shuffled, if it knows two users or more.
    """

    says: str
    state: State
    beside: str
    at_chance: tuple[str, ...]
    against: tuple[Against, ...]
    shuffled: Against | None

    @property
    def pays(self) -> bool:
        """Whether the personal model is clearly better than every baseline by accuracy, and by log loss if any."""
        return self.state == "better" and all(a.nats.low > 0.0 for a in self.against if a.nats is not None)

    @property
    def shuffle(self) -> Shuffle | None:
        """The outcome of the comparison with shuffled users; `None` if there is none, or too little data."""
        nats = self.shuffled.nats if self.shuffled is not None and self.state != "too few" else None
        return None if nats is None else shuffle_outcome(nats)


def verdict_of(models: Mapping[str, Array], rules: Mapping[str, Array], labels: Labels, drawn: str) -> Verdict:
    """Compare the personal margins [n] with those of every baseline at hand; `drawn` names what `units` are."""
    personal, others = models[PERSONAL], {**models, **rules}
    by_name = {
        name: _against(name, personal, others[name], labels, name in models) for name in others if name != PERSONAL
    }
    decided = labels.p != 0.5
    n_units = len(set(labels.units[decided].tolist()))
    accuracy = estimate(correct(personal, labels.p), labels.units)
    against = [by_name[name] for name in BASELINES if name in by_name]
    return verdict_on(accuracy, against, int(decided.sum()), n_units, drawn, by_name.get(SHUFFLED))


def verdict_on(
    accuracy: Estimate,
    against: Sequence[Against],
    decided: int,
    n_units: int,
    drawn: str = "users",
    shuffled: Against | None = None,
) -> Verdict:
    """The verdict on a personal model of this accuracy.

    Args:
        decided: number of comparisons without ties.
        n_units: number of what intervals are drawn over.
        drawn: what that is.
    """
    state, beside = standing([(a.name, a.points) for a in against], WIDE)
    accuracies = ((PERSONAL, accuracy), *((a.name, a.accuracy) for a in against))
    chance = [name for name, e in accuracies if e.low <= 0.5 <= e.high]
    verdict = Verdict("", state, beside, tuple(chance), tuple(against), shuffled)
    if decided < FEWEST or n_units < FEW_PEOPLE:
        says = f"too little data for a verdict: {decided} decided comparisons, {n_units} {drawn}"
        says += f" (at least {FEWEST} and {FEW_PEOPLE} are needed)"
        return replace(verdict, says=says, state="too few")
    return replace(verdict, says=_sentence(accuracy, verdict))


def standing(gains: Sequence[tuple[str, Estimate]], wide: float = float("inf")) -> tuple[State, str]:
    """(state of a model by its gains over others, the other that decides it).

    Only those count that are clearly better, or else those that are not clearly worse, or else all; of these the one
    with the smallest gain decides.
    """
    better, even = [g for g in gains if g[1].high < 0.0], [g for g in gains if g[1].low <= 0.0 <= g[1].high]
    name, gain = min(better or even or gains, key=lambda g: g[1].value)
    if even and not better and gain.high - gain.low > wide:
        return "too few", name
    return "worse" if better else "no better" if even else "better", name


def shuffle_outcome(nats: Estimate) -> Shuffle:
    """What `nats`, by how much the log loss is lower with each user's own parameters than with another user's, shows.

    `learnt` if the interval is above 0, `worse` if it is below. If it includes 0, the estimate decides: at 0.01 nats
    or more the model may well have learnt its users, and there are too few to be sure (`unclear`); at about 0 or
    below there is no sign of it (`not learnt`).
    """
    if nats.low > 0.0:
        return "learnt"
    if nats.high < 0.0:
        return "worse"
    return "unclear" if nats.value >= _ABOUT_ZERO else "not learnt"


def _against(name: str, personal: Array, other: Array, labels: Labels, likelihood: bool) -> Against:
    ours, theirs = (correct(margin, labels.p) for margin in (personal, other))
    nats = estimate(nll(other, labels.p) - nll(personal, labels.p), labels.units) if likelihood else None
    return Against(name, estimate(theirs, labels.units), estimate(ours - theirs, labels.units), nats)


def _sentence(accuracy: Estimate, verdict: Verdict) -> str:
    against = verdict.against
    names = {a.name: f"{a.name} ({_percent(a.accuracy)})" for a in against}
    parts = [
        f"personal ({_percent(accuracy)}) {_compared([(names[a.name], a.points) for a in against], _points, WIDE)}"
    ]
    likelihoods = [(a.name, _as_printed(a.nats)) for a in against if a.nats is not None]
    every = "every baseline" if len(likelihoods) == len(against) else "every baseline that gives a probability"
    parts += [f"By log loss it {_compared(likelihoods, _nats, every=every)}"] if likelihoods else []
    parts += [f"Accuracy not clearly different from 50%: {', '.join(verdict.at_chance)}"] if verdict.at_chance else []
    parts += [] if UNIFORM in names else ["There is no tuned uniform model to compare with"]
    return ". ".join(parts)


def _compared(
    gains: Sequence[tuple[str, Estimate]],
    as_text: Callable[[Estimate], str],
    wide: float = float("inf"),
    every: str = "every baseline",
) -> str:
    state, name = standing(gains, wide)
    gain = as_text(dict(gains)[name])
    if state == "better":
        return f"is better than {every}, the best of which is {name}: {gain}"
    if state == "too few":
        return f"is neither clearly better nor clearly worse than {name}, with too few comparisons: {gain}"
    rest = [other for other, e in gains if e.low <= 0.0 and other != name]
    return f"is {state} than {name}: {gain}" + (f" (nor clearly better than {', '.join(rest)})" if rest else "")


def _as_printed(nats: Estimate) -> Estimate:
    return Estimate(*(round(x, _DIGITS) + 0.0 for x in (nats.value, nats.low, nats.high)))


def _percent(e: Estimate) -> str:
    return f"{figure(100 * e.value)}%"


def _points(e: Estimate) -> str:
    return difference(e, "accuracy", "points", scale=100.0)


def _nats(e: Estimate) -> str:
    return in_words(e, "log loss", ("lower", "higher"), "nats", _DIGITS)
