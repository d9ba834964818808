"""Who gains and who loses, in words."""

import math
from collections.abc import Sequence

from prm.evaluation.audit.per_user import FALSE_DISCOVERIES, UserResult, UserResults
from prm.io.formatting import figure
from prm.metrics import LEAST_JUDGED
from prm.report.text.profile import Section
from prm.report.text.units import nats, percent

_SHOWN = 20
_WON = "prompts with more, or less, right than by the uniform model"


def gains(people: UserResults, strangers: int) -> Section:
    """How many gain and lose, and whom the model serves worst."""
    measures = {"which answer is picked": people.count("picks"), "likelihood (nats)": people.count("nats")}
    rows = [
        (name, *(str(c[verdict]) for verdict in ("gains", "loses", "cannot be told"))) for name, c in measures.items()
    ]
    tested = len(people.enough)
    notes = [
        f"by a sign test (picks) and a t test (nats) over each person's prompts, for the {tested} people with "
        f"{LEAST_JUDGED} or more judgements; by either test at most {100 * FALSE_DISCOVERIES:.0f}% of those said to "
        "gain, and of those said to lose, are expected to be said so wrongly"
    ]
    if (worst := people.worst) is not None:
        notes.append(
            f"least often right, as measured, of people with {LEAST_JUDGED} or more judgements: {worst.user}, "
            f"{percent(worst.personal)}% of {worst.comparisons} right (uniform: {percent(worst.uniform)}%)"
        )
    if strangers:
        notes.append(f"people whom the model does not know: {strangers}; they get the generic user, see below")
    return Section(
        "Who gains and who loses, against the uniform model",
        ("", "gain", "lose", "cannot be told"),
        tuple(rows),
        tuple(notes),
    )


def losers(people: UserResults) -> Section:
    """By name and by how much; where nobody surely loses, what was measured all the same."""
    header = ("person", "judged", "points", "won, lost", "q picks", "nats saved", "q nats")
    rows = [
        (
            one.user,
            str(one.comparisons),
            _points(one.gain),
            f"{one.better}, {one.worse}",
            _q(one.picks_q),
            nats(one.nats, "+"),
            _q(one.nats_q),
        )
        for one in people.losers[:_SHOWN]
    ]
    notes = [f"nobody surely loses{'; who may, stands first in the next table' if people.enough else ''}"]
    if rows:
        notes = [
            f"won, lost: {_WON}; q: share expected to be wrong if all with such a q or a lower one are said to lose"
        ]
    if left := len(people.losers) - len(rows):
        notes.append(f"{left} more are in the JSON file")
    lost = [-one.nats.value for one in people.enough if one.nats.value < 0]
    if lost:
        notes.append(
            f"as measured, {len(lost)} of {len(people.enough)} people with {LEAST_JUDGED} or more judgements lose, "
            f"{sum(lost) / len(lost):.3f} nats a judgement on average; chance alone makes some lose"
        )
    return Section("Who surely loses", header if rows else (), tuple(rows), tuple(notes))


def _points(gain: float) -> str:
    return figure(100 * gain, sign="+")


def _q(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def changes(people: UserResults) -> Section:
    """Those who lose most and who gain most, as measured."""
    header = ("person", "judged", "uniform", "personal", "points", "won, lost", "nats saved", "surely")
    shown = ends(people.enough)
    rows = [
        (
            one.user,
            str(one.comparisons),
            percent(one.uniform),
            percent(one.personal),
            _points(one.gain),
            f"{one.better}, {one.worse}",
            figure(one.nats.value, 3, "+") + (f" ± {one.half_width:.3f}" if math.isfinite(one.half_width) else ""),
            _surely(one),
        )
        for one in shown
    ]
    notes = [
        f"uniform, personal: accuracy in %; won, lost: {_WON}; ±: half of the 95% interval, each person's alone; "
        "surely: among so many people, in nats, picks or both"
    ]
    if left := len(people.people) - len(shown):
        few = len(people.people) - len(people.enough)
        notes.append(f"{left} more are in the JSON file, {few} of them with fewer than {LEAST_JUDGED} judgements")
    return Section("Person by person, greatest loss of nats first", header if rows else (), tuple(rows), tuple(notes))


def _surely(one: UserResult) -> str:
    """What can be told of a person, such as "loses nats"; empty for nothing."""
    if one.nats_verdict == one.picks_verdict != "cannot be told":
        return f"{one.nats_verdict} both"
    verdicts = {"nats": one.nats_verdict, "picks": one.picks_verdict}
    return "; ".join(f"{verdict} {name}" for name, verdict in verdicts.items() if verdict != "cannot be told")


def ends(people: Sequence[UserResult], most: int = _SHOWN) -> Sequence[UserResult]:
    """All of them, or the first and the last."""
    return people if len(people) <= most else [*people[: most // 2], *people[-(most // 2) :]]
