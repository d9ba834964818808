"""The first line of an evaluation: the personal model beside the best of its baselines, in words that follow intervals.

Numbers in, numbers and words out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prm.evaluation.rows import GENERIC, LENGTH_SIGN, LONGEST, PERSONAL, SHUFFLED, UNIFORM, Labels
from prm.io.formatting import estimated, figure
from prm.metrics import FEW_PEOPLE, Array, Estimate, correct, estimate, nll

BASELINES = (UNIFORM, GENERIC, LONGEST, LENGTH_SIGN)
FEWEST = 30  # decided comparisons below which no interval means anything
_WIDE = 0.2  # of accuracy: an interval that holds 0 and is wider says that there is too little, and nothing else

_ABOUT_ZERO = 0.01  # nats: a smaller advantage over shuffled users counts as none

State = Literal["better", "no better", "worse", "too few"]
Shuffle = Literal["learnt", "unclear", "not learnt", "worse"]


@dataclass(frozen=True)
class Against:
    """The personal model beside one other way to predict the same labels, pair by pair.

    Args:
        name: of the other.
        accuracy: of the other.
        points: accuracy of the personal model less the other's.
        nats: that the personal model saves; `None` for a rule that gives no probability.
    """

    name: str
    accuracy: Estimate
    points: Estimate
    nats: Estimate | None


@dataclass(frozen=True)
class Verdict:
    """What an evaluation comes to.

    Args:
        says: in one line.
        state: by accuracy: `better` than every baseline, `no better` than one of them, surely `worse` than one, or
            `too few` comparisons, people or prompts to say.
        beside: the baseline beside which the personal model does worst.
        at_chance: of the personal model and the baselines, whose accuracy may as well be one half.
        against: each baseline.
        shuffled: the personal model read as somebody else, where it knows two people or more.
    """

    says: str
    state: State
    beside: str
    at_chance: tuple[str, ...]
    against: tuple[Against, ...]
    shuffled: Against | None

    @property
    def pays(self) -> bool:
        """Whether the personal model surely does better than every baseline, by accuracy and by likelihood."""
        return self.state == "better" and all(a.nats.low > 0.0 for a in self.against if a.nats is not None)

    @property
    def shuffle(self) -> Shuffle | None:
        """The outcome of the comparison with shuffled users; `None` if there is none, or too little data."""
        nats = self.shuffled.nats if self.shuffled is not None and self.state != "too few" else None
        return None if nats is None else shuffle_outcome(nats)


def verdict_of(models: Mapping[str, Array], rules: Mapping[str, Array], labels: Labels, drawn: str) -> Verdict:
    """Compare the personal margins [n] with those of every baseline that is there; `drawn` says what `units` are."""
    ours, others = models[PERSONAL], {**models, **rules}
    found = {name: _against(name, ours, others[name], labels, name in models) for name in others if name != PERSONAL}
    decided = labels.p != 0.5
    size = f"{len(set(labels.units[decided].tolist()))} {drawn}"
    own = estimate(correct(ours, labels.p), labels.units)
    against = [found[name] for name in BASELINES if name in found]
    return verdict_on(own, against, int(decided.sum()), size, found.get(SHUFFLED))


def verdict_on(
    own: Estimate, against: Sequence[Against], decided: int, units: str, shuffled: Against | None = None
) -> Verdict:
    """The verdict on a model whose accuracy is `own`.

    Args:
        decided: comparisons that are no ties.
        units: what intervals are drawn over: "11 people".
    """
    state, beside = standing([(a.name, a.points) for a in against], _WIDE)
    chance = [name for name, e in ((PERSONAL, own), *((a.name, a.accuracy) for a in against)) if e.low <= 0.5 <= e.high]
    found = Verdict("", state, beside, tuple(chance), tuple(against), shuffled)
    if decided < FEWEST or int(units.split()[0]) < FEW_PEOPLE:
        says = f"too few to say whether anybody was learnt: {decided} decided comparisons, {units}"
        says += f" (at least {FEWEST}, and {FEW_PEOPLE})"
        return replace(found, says=says, state="too few")
    return replace(found, says=_said(own, found))


def standing(gains: Sequence[tuple[str, Estimate]], wide: float = float("inf")) -> tuple[State, str]:
    """Where a model stands by its gains over others, and the other that decides it: of those it stands worst beside.

    That is one that is surely better, else one that is no worse, else the best of all.
    """
    behind, even = [g for g in gains if g[1].high < 0.0], [g for g in gains if g[1].low <= 0.0 <= g[1].high]
    name, gain = min(behind or even or gains, key=lambda g: g[1].value)
    if even and not behind and gain.high - gain.low > wide:
        return "too few", name
    return "worse" if behind else "no better" if even else "better", name


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


def _against(name: str, ours: Array, theirs: Array, labels: Labels, likelihood: bool) -> Against:
    right, other = (correct(margin, labels.p) for margin in (ours, theirs))
    nats = estimate(nll(theirs, labels.p) - nll(ours, labels.p), labels.units) if likelihood else None
    return Against(name, estimate(other, labels.units), estimate(right - other, labels.units), nats)


def _said(own: Estimate, found: Verdict) -> str:
    against = found.against
    names = {a.name: f"{a.name} ({_percent(a.accuracy)})" for a in against}
    parts = [f"personal ({_percent(own)}) {_beside([(names[a.name], a.points) for a in against], _points, _WIDE)}"]
    likelihoods = [(a.name, a.nats) for a in against if a.nats is not None]
    parts += [f"in likelihood it {_beside(likelihoods, _nats)}"] if likelihoods else []
    parts += [f"at chance, or not surely off it: {', '.join(found.at_chance)}"] if found.at_chance else []
    parts += [] if UNIFORM in names else ["there is no tuned uniform model to compare with"]
    return "; ".join(parts)


def _beside(gains: Sequence[tuple[str, Estimate]], shown: Callable[[Estimate], str], wide: float = float("inf")) -> str:
    state, name = standing(gains, wide)
    gain = shown(dict(gains)[name])
    if state == "better":
        return f"is better than every baseline, the best of which is {name}: {gain}"
    if state == "too few":
        return f"cannot be told from {name}, for want of comparisons: {gain}"
    rest = [other for other, e in gains if e.low <= 0.0 and other != name]
    return f"is {state} than {name}: {gain}" + (f" (nor surely better than {', '.join(rest)})" if rest else "")


def _percent(e: Estimate) -> str:
    return f"{figure(100 * e.value)}%"


def _points(e: Estimate) -> str:
    return f"{estimated(e, scale=100.0, sign='+')} points"


def _nats(e: Estimate) -> str:
    return f"{estimated(e, digits=3, sign='+')} nats saved"
