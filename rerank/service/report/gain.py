"""What personal ranking is worth to the users of a service: numbers, with 95% intervals by bootstrap over people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prm.evaluation.audit.calibration import LEAST_COMPARED
from prm.evaluation.audit.per_user import UserResults, user_results
from prm.evaluation.page_details import calibration_error
from prm.evaluation.rows import GENERIC, PERSONAL
from prm.evaluation.verdict import FEWEST, WIDE, State, standing
from prm.io.rows import Json
from prm.io.tables import plain
from prm.metrics import (
    FEW_PEOPLE,
    MIN_COMPARISONS,
    Array,
    Calibration,
    Estimate,
    calibration,
    correct,
    estimate,
    gap,
    macro,
    nll,
    worst_tenth,
)
from rerank.service.report.records import Counts, Predicted, Records, Said, Shown

KNOWN_BY = (0, 1, 2, 5, 10, 20, 50)  # the fewest comparisons of each group
PERIODS = 10
_WEEKS = range(3, 21)  # periods of a log that lasts so long are weeks
_CERTAIN = 1e-12  # predictions are kept off 0 and 1 by this, so that no log loss is infinite


@dataclass(frozen=True)
class Group:
    """Answers to what was on top; `share`: how often it was the person's choice, as a mean over people."""

    people: int
    answers: int
    share: Estimate


@dataclass(frozen=True)
class HeldOut:
    """People who are shown their personal ranking, against people who are shown the generic user's.

    Args:
        what: counts as a choice: `picks` among what was shown, or `thumbs` of the response on top.
        more: share with personal ranking minus share without.
        in_both: people who were in both groups, because the share was changed; they are left out.
    """

    what: Literal["picks", "thumbs"]
    personal: Group
    held_out: Group
    more: Estimate
    in_both: int

    @property
    def enough(self) -> bool:
        """Whether both groups are large enough for an interval."""
        return all(g.people >= FEW_PEOPLE and g.answers >= FEWEST for g in (self.personal, self.held_out))


@dataclass(frozen=True)
class Duels:
    """Choices between the person's best response and the generic user's, where they differ.

    Args:
        on_top: which of the two was on top: `personal`, `generic`, or `either`: the mean of these two shares, in which
            a preference for what comes first cancels out.
        won: share in which the person took the personal one, as a mean over people.
        predicted: mean P(personal preferred) when they were shown.
    """

    on_top: Literal["personal", "generic", "either"]
    people: int
    answers: int
    won: Estimate
    predicted: float


@dataclass(frozen=True)
class Gain:
    """How much better answers were predicted by the person's parameters than by the generic user's.

    Args:
        name: of the group of comparisons.
        accuracy: of the person's parameters, without ties.
        points: accuracy gained; nats: log loss lower by.
        nats_of_people: the same as a mean over people.
    """

    name: str
    people: int
    comparisons: int
    accuracy: Estimate
    points: Estimate
    nats: Estimate
    nats_of_people: Estimate

    @property
    def enough(self) -> bool:
        """Whether there is enough for an interval."""
        return self.people >= FEW_PEOPLE and self.comparisons >= FEWEST


@dataclass(frozen=True)
class Losers:
    """Who loses by personal predictions, of people with `MIN_COMPARISONS` comparisons or more.

    Args:
        tested: number of these people; gain, lose: those of them whose log loss is surely lower, or higher (at most 5%
            of each are expected to be listed wrongly).
        share: of those who surely lose; interval by Clopper and Pearson.
        worst_tenth: mean decrease in log loss, in nats, of the tenth of people who lose most as measured; chance makes
            it look worse than it is.
    """

    tested: int
    gain: int
    lose: int
    share: Estimate
    worst_tenth: float


@dataclass(frozen=True)
class Report:
    """Is personal ranking good?

    Args:
        held_out: by picks and by thumbs, as far as there are any in both groups.
        duels: by what was on top.
        gains: over all comparisons, then over those of people who were known by at least one.
        over_time, by_known: in parts.
        calibration: of what was predicted, by model; errors: of each, with its interval. Empty if there are too few.
        people: each of the people who are tested, for pictures.
    """

    held_out: tuple[HeldOut, ...]
    duels: tuple[Duels, ...]
    gains: tuple[Gain, ...]
    over_time: tuple[Gain, ...]
    by_known: tuple[Gain, ...]
    calibration: dict[str, Calibration]
    errors: dict[str, Estimate]
    losers: Losers
    counts: Counts
    people: UserResults

    @property
    def measured(self) -> HeldOut | None:
        """The comparison with held-out people that decides: by picks, or else by thumbs, if there are enough."""
        return next((one for one in self.held_out if one.enough), None)

    @property
    def by(self) -> Literal["held-out users", "predictions"]:
        """What decides: held-out users, or else what was predicted before each answer."""
        return "predictions" if self.measured is None else "held-out users"

    @property
    def state(self) -> State:
        """Whether personal ranking is better, by the interval of what decides."""
        if self.measured is not None:
            return standing([(self.by, self.measured.more)], WIDE)[0]
        if not self.gains or not self.gains[0].enough:
            return "too few"
        return standing([(self.by, self.gains[0].nats)])[0]

    def to_dict(self) -> dict[str, Json]:
        """JSON-ready, without ids of people; an infinite end of an interval is null."""
        values = {name: value for name, value in asdict(self).items() if name != "people"}
        return plain({"state": self.state, "by": self.by} | values)


def report_on(records: Records) -> Report:
    """All figures of a report."""
    p = records.predicted
    own, generic = _margins(p.own), _margins(p.generic)
    answered = _answered(records.said)
    models = {PERSONAL: own, GENERIC: generic} if len(own) >= LEAST_COMPARED else {}
    people = _tested(p, own, generic)
    whole = np.ones(len(own), np.bool_)
    gains = [
        _gain("all", p, own, generic, whole),
        _gain("of users known by 1 or more", p, own, generic, p.known_by > 0),
    ]
    return Report(
        held_out=tuple(filter(None, [_held_out("picks", answered), _held_out("thumbs", answered)])),
        duels=tuple(_duels(answered)),
        gains=tuple(filter(None, gains)),
        over_time=tuple(filter(None, (_gain(name, p, own, generic, part) for name, part in periods(p.time)))),
        by_known=tuple(filter(None, (_gain(name, p, own, generic, part) for name, part in _known_by(p.known_by)))),
        calibration={name: calibration(margin, p.p_chosen) for name, margin in models.items()},
        errors={
            name: calibration_error(margin, p.p_chosen, p.person.astype(np.str_)) for name, margin in models.items()
        },
        losers=_losers(p, own, generic, people),
        counts=records.counts,
        people=people,
    )


def periods(time: Array) -> list[tuple[str, NDArray[np.bool_]]]:
    """(name, members [n]) of the periods of a log: its weeks, or as many comparisons in each."""
    if not len(time):
        return []
    days = [datetime.fromtimestamp(t, UTC).date() for t in time.tolist()]
    mondays = np.array([(day - timedelta(day.weekday())).isoformat() for day in days])
    weeks = np.unique(mondays)
    if len(weeks) in _WEEKS:
        return [(f"week of {week}", mondays == week) for week in weeks.tolist()]
    order, parts = np.argsort(time, kind="stable"), min(PERIODS, len(time) // FEWEST)
    found = []
    for rows in np.array_split(order, parts) if parts > 1 else []:
        member = np.zeros(len(time), np.bool_)
        member[rows] = True
        first, last = (datetime.fromtimestamp(time[rows[i]], UTC) for i in (0, -1))
        found.append((f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}", member))
    return found


def _known_by(known_by: NDArray[np.int64]) -> list[tuple[str, NDArray[np.bool_]]]:
    ends = [*KNOWN_BY[1:], None]
    found = []
    for low, high in zip(KNOWN_BY, ends, strict=True):
        name = f"{low} or more" if high is None else str(low) if high == low + 1 else f"{low} to {high - 1}"
        found.append((name, (known_by >= low) & (known_by < (high or np.inf))))
    return found


def _margins(p: Array) -> Array:
    kept = np.clip(p, _CERTAIN, 1.0 - _CERTAIN)
    return np.asarray(np.log(kept) - np.log1p(-kept))


def _gain(name: str, p: Predicted, own: Array, generic: Array, part: NDArray[np.bool_]) -> Gain | None:
    """The gain on a part of the comparisons; `None` if it has none."""
    if not part.any():
        return None
    ours, theirs, labels, people = own[part], generic[part], p.p_chosen[part], p.person[part]
    right = correct(ours, labels)
    nats = nll(theirs, labels) - nll(ours, labels)
    return Gain(
        name,
        len(set(people.tolist())),
        int(part.sum()),
        estimate(right, people),
        estimate(right - correct(theirs, labels), people),
        estimate(nats, people),
        macro(nats, people),
    )


def _answered(said: Sequence[Said]) -> dict[tuple[int, bool], tuple[Shown, Said]]:
    """What was shown, with the last answer to it: of a thumb, the last on the response on top."""
    found: dict[tuple[int, bool], tuple[Shown, Said]] = {}
    for one in said:
        is_thumb = one.kind == "thumb"
        if len(set(one.shown.texts)) > 1 and (one.kind in ("pick", "pair") or (is_thumb and _of_top(one))):
            found[one.shown.number, is_thumb] = (one.shown, one)
    return found


def _of_top(one: Said) -> bool:
    return one.texts == (one.shown.top,)


def _held_out(
    what: Literal["picks", "thumbs"], answered: Mapping[tuple[int, bool], tuple[Shown, Said]]
) -> HeldOut | None:
    """`None` if either group has no answers."""
    rows: list[tuple[int, bool, float]] = []
    for (_, is_thumb), (shown, said) in answered.items():
        if is_thumb and what == "thumbs":
            rows.append((shown.person, shown.held_out, float(said.value or 0.0)))
        elif said.kind == "pick" and what == "picks" and said.value is not None and {*said.texts} == shown.seen:
            rows.append((shown.person, shown.held_out, float(said.texts[int(said.value)] == shown.top)))
    in_both = {person for person, held_out, _ in rows if held_out} & {
        person for person, held_out, _ in rows if not held_out
    }
    groups, means = [], []
    for which in (False, True):
        people = np.array([person for person, held_out, _ in rows if held_out == which and person not in in_both])
        chosen = np.array([hit for person, held_out, hit in rows if held_out == which and person not in in_both])
        if not len(people):
            return None
        groups.append(Group(len(set(people.tolist())), len(people), macro(chosen, people)))
        means.append(_means(chosen, people))
    return HeldOut(what, groups[0], groups[1], gap(means[0], means[1]), len(in_both))


def _duels(answered: Mapping[tuple[int, bool], tuple[Shown, Said]]) -> list[Duels]:
    """Choices where the two responses differ, by which of them was on top, and both together."""
    rows: dict[bool, list[tuple[int, float, float]]] = {False: [], True: []}
    for (_, is_thumb), (shown, said) in answered.items():
        two = (shown.texts[shown.personal], shown.texts[shown.generic])
        if is_thumb or not shown.differs or not {*two} <= {*said.texts}:
            continue
        if said.value is None:
            rows[shown.held_out].append((shown.person, 0.5, shown.p_personal))
        elif (taken := said.texts[int(said.value)]) in two:
            rows[shown.held_out].append((shown.person, float(taken == two[0]), shown.p_personal))
    found, means = [], []
    names: Mapping[bool, Literal["personal", "generic"]] = {False: "personal", True: "generic"}
    for held_out, name in names.items():
        if rows[held_out]:
            person, won, predicted = map(np.array, zip(*rows[held_out], strict=True))
            people = len(set(person.tolist()))
            found.append(Duels(name, people, len(won), macro(won, person), float(predicted.mean())))
            means.append(_means(won, person))
    if len(found) == 2:
        twice = gap(means[0], -means[1])  # the sum of the two means
        either = Estimate(twice.value / 2, twice.low / 2, twice.high / 2)
        people, answers = (sum(getattr(one, name) for one in found) for name in ("people", "answers"))
        found.append(Duels("either", people, answers, either, (found[0].predicted + found[1].predicted) / 2))
    return found


def _means(values: Array, people: NDArray[np.int64]) -> Array:
    """The mean of each person."""
    _, index = np.unique(people, return_inverse=True)
    return np.asarray(np.bincount(index, weights=values) / np.bincount(index), np.float64)


def _tested(p: Predicted, own: Array, generic: Array) -> UserResults:
    """The people with `MIN_COMPARISONS` comparisons or more, without ties."""
    decided = np.bincount(p.person, weights=p.p_chosen != 0.5)
    kept = decided[p.person] >= MIN_COMPARISONS if len(own) else np.zeros(0, np.bool_)
    people, prompts = (x[kept].astype(np.str_).tolist() for x in (p.person, p.prompt))
    return user_results(own[kept], generic[kept], p.p_chosen[kept], people, prompts)


def _losers(p: Predicted, own: Array, generic: Array, people: UserResults) -> Losers:
    from scipy import stats

    counts, tested = people.count("nats"), len(people.people)
    share = Estimate(float("nan"), float("-inf"), float("inf"))
    if tested:
        ends = stats.binomtest(counts["loses"], tested).proportion_ci()
        share = Estimate(counts["loses"] / tested, float(ends.low), float(ends.high))
    gains = np.where(p.p_chosen == 0.5, np.nan, nll(generic, p.p_chosen) - nll(own, p.p_chosen))
    return Losers(tested, counts["gains"], counts["loses"], share, worst_tenth(gains, p.person))
