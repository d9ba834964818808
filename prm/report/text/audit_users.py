"""The users that gain and lose by personalisation, as tables."""

import math
from collections.abc import Sequence

from prm.evaluation.audit.per_user import FALSE_DISCOVERIES, UserResult, UserResults
from prm.io.formatting import figure
from prm.metrics import MIN_COMPARISONS
from prm.report.section import Section
from prm.report.text.units import nats, percent

_SHOWN = 20
_UNIFORM = "uniform model"


def _short(model: str) -> str:
    return model.removesuffix(" model")


def _prompts_won(other: str = _UNIFORM) -> str:
    return f"prompts on which the personal model predicts more, or fewer, comparisons correctly than the {other}"


def _lower(other: str = _UNIFORM) -> str:
    return f"lower log loss: the {other}'s log loss minus the personal model's, in nats per comparison"


def gains(people: UserResults, unknown_users: int, other: str = _UNIFORM) -> Section:
    """How many users gain and lose, and the user with the lowest accuracy."""
    measures = {"accuracy (picks)": people.count("picks"), "log loss (nats)": people.count("nats")}
    rows = [
        (name, *map(str, (c["gains"], c["loses"], c["unclear"] - people.untested, people.untested)))
        for name, c in measures.items()
    ]
    tested = len(people.enough)
    notes = [
        f"by a sign test (picks) and a t test (nats) over each user's prompts, for the {tested} users with "
        f"{MIN_COMPARISONS} or more comparisons; by either test at most {100 * FALSE_DISCOVERIES:.0f}% of the users "
        "listed as gaining, and of those listed as losing, are expected to be listed wrongly"
    ]
    if (worst := people.worst) is not None:
        notes.append(
            f"lowest accuracy, of users with {MIN_COMPARISONS} or more comparisons: {worst.user}, "
            f"{percent(worst.personal)}% of {worst.comparisons} ({_short(other)}: {percent(worst.uniform)}%)"
        )
    if unknown_users:
        notes.append(f"users that the model does not know: {unknown_users}; they get the generic user, see below")
    return Section(
        f"How many users gain or lose, against the {other}",
        ("", "gain", "lose", "unclear", "not tested"),
        tuple(rows),
        tuple(notes),
    )


def losers(people: UserResults) -> Section:
    """The users that clearly lose, with their losses, and how many lose as measured."""
    header = ("user", "pairs", "points", "won, lost", "q picks", "lower log loss", "q nats")
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
    candidates = "; the users most likely to lose are the first of the next table" if people.enough else ""
    notes = [f"no user clearly loses{candidates}"]
    if rows:
        notes = [
            f"won, lost: {_prompts_won()}; {_lower()}; q: expected share of errors if every user with this q or a "
            "lower one is listed"
        ]
    if left := len(people.losers) - len(rows):
        notes.append(f"{left} more are in the JSON file")
    lost = [-one.nats.value for one in people.enough if one.nats.value < 0]
    if lost:
        notes.append(
            f"as measured, {len(lost)} of {len(people.enough)} users with {MIN_COMPARISONS} or more comparisons lose, "
            f"{sum(lost) / len(lost):.3f} nats per comparison on average; some do so by chance alone"
        )
    return Section("Users that clearly lose", header if rows else (), tuple(rows), tuple(notes))


def _points(gain: float) -> str:
    return figure(100 * gain, sign="+")


def _q(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def changes(people: UserResults, most: int = _SHOWN, other: str = _UNIFORM) -> Section:
    """The users that lose most and gain most, as measured."""
    name, listed = _short(other), ends(people.enough, most)
    header = ("user", "pairs", name, "personal", "points", "won, lost", "lower log loss", "clear change")
    rows = [
        (
            one.user,
            str(one.comparisons),
            percent(one.uniform),
            percent(one.personal),
            _points(one.gain),
            f"{one.better}, {one.worse}",
            figure(one.nats.value, 3, "+") + (f" ± {one.half_width:.3f}" if math.isfinite(one.half_width) else ""),
            _clear_change(one),
        )
        for one in listed
    ]
    title = "Each user, greatest loss by log loss first"
    if not rows:
        none = f"no user has {MIN_COMPARISONS} or more comparisons; all users are in the JSON file"
        return Section(title, (), (), (none,), absent=True)
    notes = [
        f"pairs: comparisons without ties; {name}, personal: accuracy in %; won, lost: {_prompts_won(other)}; "
        f"{_lower(other)}, ± "
        "half of each user's own 95% interval; clear change: by log loss (nats), accuracy (picks) or both, given how "
        "many users are tested"
    ]
    if left := len(people.people) - len(listed):
        few = len(people.people) - len(people.enough)
        notes.append(f"{left} more are in the JSON file, {few} of them with fewer than {MIN_COMPARISONS} comparisons")
    return Section(title, header, tuple(rows), tuple(notes))


def _clear_change(one: UserResult) -> str:
    """What is clear for a user, such as "loses nats"; empty if nothing is."""
    if one.nats_verdict == one.picks_verdict != "unclear":
        return f"{one.nats_verdict} both"
    verdicts = {"nats": one.nats_verdict, "picks": one.picks_verdict}
    return "; ".join(f"{verdict} {name}" for name, verdict in verdicts.items() if verdict != "unclear")


def ends(people: Sequence[UserResult], most: int = _SHOWN) -> Sequence[UserResult]:
    """All results, or the first and the last ones if there are more than `most`."""
    return people if len(people) <= most else [*people[: most // 2], *people[-(most // 2) :]]
