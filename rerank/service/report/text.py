"""The report of a service in words: sentences that follow intervals, and titled tables with notes."""

from datetime import UTC, datetime

from prm.errors import counted
from prm.evaluation.verdict import FEWEST
from prm.io.formatting import figure
from prm.metrics import FEW_PEOPLE, MIN_COMPARISONS, Estimate
from prm.report.section import Section
from prm.report.text.evaluation import calibration_error, percent
from prm.report.text.units import Card, between, card, lower_by, nats, points
from rerank.service.report.gain import Gain, HeldOut, Report

HELD_OUT = "Against held-out users"
DUELS = "Where the personal and the generic pick differ"
PREDICTED = "What was predicted before each comparison"
OVER_TIME = "Over time"
BY_KNOWN = "By how much was known of the user"
CALIBRATION = "Log loss and calibration"
LOSERS = "Who loses"
COUNTS = "What the store holds"
_CHOICES = {"picks": "the response on top was picked", "thumbs": "the response on top got a thumb up"}
_ON_TOP = {
    "personal": "personal on top",
    "generic": "generic on top (held-out users)",
    "either": "mean of both",
}
READ_WITH_CARE = (
    "Users judge what they were shown, and like what comes first. Only held-out users show what would have happened "
    "without personal ranking: who they are is drawn by a hash of their id, and their responses are ordered by the "
    "generic user's rewards. All other figures are of feedback on what personal ranking had a part in choosing.",
    "A user who gives no feedback is in no figure but the number of rankings that were shown.",
)


def headline(r: Report) -> str:
    """The verdict as a heading."""
    if r.by == "predictions":
        return {
            "better": "Personal rewards predict what users choose better than the generic user's",
            "worse": "Personal rewards predict what users choose worse than the generic user's",
            "no better": "Personal rewards predict what users choose no better than the generic user's",
            "too few": "Too little data to say whether personal ranking is good",
        }[r.state]
    return {
        "better": "Users choose the first response more often when it is ranked for them",
        "worse": "Users choose the first response less often when it is ranked for them",
        "no better": "Users choose the first response about as often when it is not ranked for them",
        "too few": "Too little data to say whether personal ranking is good",
    }[r.state]


def lead(r: Report) -> str:
    """The verdict in sentences, with units, and intervals in words."""
    says = []
    for one in r.held_out:
        if one.enough:
            says.append(
                f"With personal ranking {_CHOICES[one.what]} in {_of(one.personal.share)} of cases, for held-out "
                f"users in {_of(one.held_out.share)}: a difference of {figure(100 * one.more.value, sign='+')} "
                f"percentage points ({between(one.more, unit='', sign='+')})."
            )
    if not says:
        says.append(_why_no_held_out(r))
    if r.gains:
        g = r.gains[0]
        says.append(
            f"Of {counted(g.comparisons, 'comparison')} by {counted(g.people, 'user')}, log loss of what was "
            f"predicted beforehand is {lower_by(g.nats)} than the generic user's."
            if g.enough
            else f"There are {counted(g.comparisons, 'comparison')} by {counted(g.people, 'user')}: at least "
            f"{FEWEST} by {FEW_PEOPLE} are needed."
        )
    return " ".join(says)


def cards(r: Report) -> list[Card]:
    """The main figures, each with its interval in words."""
    found = [
        card(
            one.more, f"percentage points more {one.what} of the first response than held-out users", unit="", sign="+"
        )
        for one in r.held_out
        if one.enough
    ]
    if r.gains and r.gains[0].enough:
        found.append(card(r.gains[0].nats, "nats lower log loss than the generic user", 3, 1.0, ""))
        found.append(card(r.gains[0].points, "percentage points over the generic user", unit="", sign="+"))
    if r.losers.tested:
        what = f"of {counted(r.losers.tested, 'user')} with {MIN_COMPARISONS} comparisons or more surely lose"
        found.append(card(r.losers.share, what))
    c = r.counts
    found.append((f"{c.comparisons:,}", f"comparisons by {counted(c.people, 'user')}", ""))
    return found


def sections(r: Report) -> list[Section]:
    """All tables; one that could not be filled says why."""
    return [_held_out(r), _duels(r), _predicted(r), *_parts(r), _calibration(r), _losers(r), _counts(r)]


def _held_out(r: Report) -> Section:
    header = ("", "users", "cases", "share %", "held-out users", "cases", "share %", "difference, points")
    rows = tuple(
        (
            _CHOICES[one.what],
            f"{one.personal.people:,}",
            f"{one.personal.answers:,}",
            percent(one.personal.share),
            f"{one.held_out.people:,}",
            f"{one.held_out.answers:,}",
            percent(one.held_out.share),
            points(one.more) + ("" if one.enough else " (too few)"),
        )
        for one in r.held_out
    )
    if not rows:
        return Section(HELD_OUT, (), (), (_why_no_held_out(r),), absent=True)
    notes = [
        "Shares are means over users; 95% intervals by bootstrap over users. Held-out users see the generic user's "
        f"ranking. Too few: fewer than {FEWEST} cases or {FEW_PEOPLE} users in a group."
    ]
    if in_both := max(one.in_both for one in r.held_out):
        notes.append(
            f"{counted(in_both, 'user')} left out, because the share was changed and they were in both groups."
        )
    return Section(HELD_OUT, header, rows, tuple(notes))


def _duels(r: Report) -> Section:
    if not r.duels:
        why = "nobody has chosen between two responses of which one was best for them and another for the generic user"
        return Section(DUELS, (), (), (why,), absent=True)
    header = ("", "users", "cases", "personal one chosen, %", "predicted, %")
    rows = tuple(
        (_ON_TOP[d.on_top], f"{d.people:,}", f"{d.answers:,}", percent(d.won), figure(100 * d.predicted))
        for d in r.duels
    )
    note = (
        "Cases in which the user chose one of the two. Half is no preference. Whatever is on top is chosen more "
        "often for that reason alone; the mean of both rows is free of it if it is as strong for either."
    )
    return Section(DUELS, header, rows, (note,))


def _gain_row(g: Gain) -> tuple[str, ...]:
    size = (g.name, f"{g.people:,}", f"{g.comparisons:,}")
    return (*size, percent(g.accuracy), points(g.points), nats(g.nats, "+"))


def _predicted(r: Report) -> Section:
    if not r.gains:
        return Section(PREDICTED, (), (), ("there are no comparisons yet",), absent=True)
    notes = (
        "Every comparison, by the parameters that the service had just before it. Points: accuracy above the generic "
        "user's; lower log loss: below the generic user's, in nats. 95% intervals by bootstrap over users.",
        f"Lower log loss as a mean over users: {nats(r.gains[0].nats_of_people, '+')}.",
    )
    return Section(PREDICTED, _header(""), tuple(map(_gain_row, r.gains)), notes)


def _header(first: str) -> tuple[str, ...]:
    return (first, "users", "comparisons", "accuracy %", "points", "lower log loss")


def _parts(r: Report) -> list[Section]:
    found = []
    if r.by_known:
        note = (
            "Known by: comparisons of the user that had been learnt from before. With 0 the two are the same, unless "
            "the run knew the user. Users with many comparisons are others than those with few."
        )
        found.append(Section(BY_KNOWN, _header("known by"), tuple(map(_gain_row, r.by_known)), (note,)))
    if r.over_time:
        note = "As time goes by more is known of each user, and other users come."
        found.append(Section(OVER_TIME, _header(""), tuple(map(_gain_row, r.over_time)), (note,)))
    elif r.gains:
        why = f"too few comparisons to divide: at least {2 * FEWEST} are needed"
        found.append(Section(OVER_TIME, (), (), (why,), absent=True))
    return found


def _calibration(r: Report) -> Section:
    if not r.calibration:
        return Section(CALIBRATION, (), (), ("too few comparisons to compare with what was predicted",), absent=True)
    rows = tuple(
        (name, calibration_error(c), nats(r.errors[name]), figure(100 * c.predicted), figure(100 * c.observed))
        for name, c in r.calibration.items()
    )
    header = ("", "calibration error", "with its interval", "predicted, %", "observed, %")
    note = (
        "Mean distance of the predicted from the observed probability of the response that was expected to win; in "
        "brackets, the error that chance alone gives if every probability is right."
    )
    return Section(CALIBRATION, header, rows, (note,))


def _losers(r: Report) -> Section:
    one = r.losers
    if not one.tested:
        why = f"nobody has {MIN_COMPARISONS} comparisons yet"
        return Section(LOSERS, (), (), (why,), absent=True)
    rows = (
        (f"users with {MIN_COMPARISONS} comparisons or more", f"{one.tested:,}"),
        ("surely gain, by log loss", f"{one.gain:,}"),
        ("surely lose, by log loss", f"{one.lose:,}"),
        ("share that surely loses, %", percent(one.share)),
        ("worst tenth of them: log loss lower by, nats", figure(one.worst_tenth, 3, "+")),
    )
    note = (
        "Each by a t test over their prompts; at most 5% of those listed as losing, and of those listed as gaining, "
        "are expected to be listed wrongly. The worst tenth are those who lose most as measured, some by chance."
    )
    return Section(LOSERS, ("", ""), rows, (note,))


def _counts(r: Report) -> Section:
    c = r.counts
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in c.feedback.items()) or "none"
    rows = [
        ("users who were shown or said something", f"{c.people:,}"),
        ("held-out users", f"{c.held_out:,}"),
        ("users with parameters in the store", f"{c.known:,}"),
        ("feedback", kinds),
        ("comparisons", f"{c.comparisons:,}"),
        ("ties among them", f"{c.ties:,}"),
        ("rankings shown to users", f"{c.shown:,}"),
        ("rankings with feedback", f"{c.answered:,}"),
        ("users forgotten", f"{c.forgotten:,}"),
    ]
    if c.first is not None and c.last is not None:
        rows.append(("from", _minute(c.first)))
        rows.append(("to", _minute(c.last)))
    return Section(COUNTS, ("", ""), tuple(rows))


def _minute(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} UTC"


def _why_no_held_out(r: Report) -> str:
    if not r.counts.held_out:
        return (
            "Nobody was held out, so what personal ranking brings is not measured. --service.holdout 0.05 of 'rerank "
            "serve' holds out a twentieth of the users, by their ids: of few users perhaps nobody yet."
        )
    return f"Too little feedback to compare with held-out users: {_sizes(r.held_out)}."


def _sizes(held_out: tuple[HeldOut, ...]) -> str:
    if not held_out:
        return "one of the groups has none"
    return "; ".join(
        f"{counted(one.held_out.answers, one.what[:-1])} by {counted(one.held_out.people, 'held-out user')}"
        f" and {one.personal.answers:,} by {one.personal.people:,} others"
        for one in held_out
    )


def _of(e: Estimate) -> str:
    return f"{figure(100 * e.value)}% ({between(e)})"
