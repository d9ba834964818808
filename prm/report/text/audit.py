"""An audit as text: titled tables with notes, the same for the terminal and the page."""

import math
from collections.abc import Iterable

from prm.errors import counted
from prm.evaluation.audit import Audit
from prm.evaluation.audit.biases import Bias
from prm.evaluation.audit.calibration import LEAST_COMPARED
from prm.evaluation.audit.flagged_words import Flagged
from prm.evaluation.evaluate import GENERIC, PERSONAL, UNIFORM
from prm.metrics import MIN_COMPARISONS
from prm.report.section import Section
from prm.report.text.audit_users import changes, gains, losers
from prm.report.text.evaluation import calibration_error
from prm.report.text.profile import share
from prm.report.text.units import Card, card, nats, percent, points

_SHOWN = 10
_BIAS_NOTE = (
    "users: share of pairs in which they chose such a response; personal, uniform: share in which the model picks "
    "it; difference: personal minus users"
)


def headline(a: Audit) -> str:
    """The result in one sentence: how many users gain and lose, by log loss."""
    counts = a.people.count("nats")
    n = len(a.people.people)
    return (
        f"Of {counted(n, 'user')}, {counts['gains']} clearly gain by personalisation (by log loss), "
        f"{counts['loses']} clearly lose, and for {counts['unclear'] - a.people.untested} it is unclear; "
        f"{a.people.untested} have fewer than {MIN_COMPARISONS} comparisons and are not tested."
    )


def sections(a: Audit) -> list[Section]:
    """All tables of the audit, without pictures."""
    parts = [gains(a.people, a.unknown_users), losers(a.people), changes(a.people), _reliability(a), _drift(a)]
    parts += [_length(a), _formats(a), _views(a), _echo(a), _flagged(a)]
    return [*parts, _flagged_users(a.flagged)] if a.flagged is not None and a.flagged.people else parts


def cards(a: Audit) -> list[Card]:
    """The main figures, each with its interval in words."""
    changes = [one.gain for one in a.people.people if not math.isnan(one.gain)]
    mean = f"{100 * sum(changes) / len(changes):+.1f}" if changes else "-"
    found: list[Card] = [
        (str(a.people.count("nats")["gains"]), "users gain by log loss", ""),
        (str(len(a.people.losers)), "users lose by accuracy or log loss", ""),
        (mean, "points of accuracy, mean over users", ""),
        card(a.views.rows[0].shift, "points towards stated false views", unit="", sign="+"),
    ]
    if a.length is not None:
        found.append(card(a.length.excess, "points more longer responses than users chose", unit="", sign="+"))
    return found


def _reliability(a: Audit) -> Section:
    header = ("training comparisons", "users", "comparisons", "", "predicted %", "observed %", "calibration error")
    rows = [
        (
            *((group.train_comparisons, str(group.people), str(group.comparisons)) if i == 0 else ("", "", "")),
            name,
            percent(c.predicted),
            percent(c.observed),
            calibration_error(c),
        )
        for group in a.reliability
        for i, (name, c) in enumerate(group.models.items())
    ]
    notes = [
        "predicted: mean P(picked response); observed: how often the picked response was chosen; in brackets, the "
        "error that chance alone gives if every probability is right"
    ]
    few = [f"{group.train_comparisons} ({group.comparisons})" for group in a.reliability if not group.models]
    if few:
        notes.append(f"left out, with fewer than {LEAST_COMPARED} comparisons: {', '.join(few)}")
    if rest := a.comparisons - sum(group.comparisons for group in a.reliability):
        notes.append(
            f"in no group: {counted(rest, 'comparison')} by users whose training comparisons the run did not count"
        )
    title = "Calibration, by number of training comparisons of the user"
    return Section(title, header if rows else (), tuple(rows), tuple(notes if rows else notes[1:]), absent=not rows)


def _drift(a: Audit) -> Section:
    d = a.drift
    rows = (
        ("equal picks", share(d.agreement)),
        ("mean difference of P(chosen)", nats(d.distance)),
        ("log loss of the generic user (nats)", nats(d.generic_nats)),
        ("log loss of the uniform model (nats)", nats(d.uniform_nats)),
        ("log loss lower with the generic user by", nats(d.saved, "+")),
        ("accuracy higher with the generic user by, points", points(d.gain)),
    )
    return Section("Unknown users: the generic user against the uniform model", ("", ""), rows)


def _bias_table(title: str, biases: Iterable[Bias], notes: tuple[str, ...]) -> Section:
    header = ("a response that", "pairs", "users %", "personal %", "uniform %", "difference, points")
    rows = tuple(
        (
            b.name,
            str(b.pairs),
            *(percent(value) for value in (b.people.value, b.picks[PERSONAL], b.picks[UNIFORM])),
            points(b.excess),
        )
        for b in biases
    )
    return Section(title, header if rows else (), rows, notes)


def _length(a: Audit) -> Section:
    title = "Length"
    if a.length is None:
        return Section(title, (), (), ("no pair of responses differs in length",), absent=True)
    enough = [one for one in a.lengths if one.pairs >= MIN_COMPARISONS]
    notes = [_BIAS_NOTE]
    correlations = [one.correlation for one in enough if not math.isnan(one.correlation)]
    if correlations:
        low, high = min(correlations), max(correlations)
        mean = sum(correlations) / len(correlations)
        notes.append(
            f"correlation of a user's score with length, for users with {MIN_COMPARISONS} or more such pairs: "
            f"mean {mean:+.2f}, from {low:+.2f} to {high:+.2f}"
        )
    largest = sorted(enough, key=lambda one: -abs(one.picks[PERSONAL] - one.person))[:3]
    notes += [
        f"{one.user}: chose the longer response in {percent(one.person)}% of {counted(one.pairs, 'pair')}, the "
        f"personal model picks it in {percent(one.picks[PERSONAL])}% (uniform: {percent(one.picks[UNIFORM])}%)"
        for one in largest
    ]
    return _bias_table(title, [a.length], tuple(notes))


def _formats(a: Audit) -> Section:
    if not a.formats:
        return Section("Formats", (), (), ("in too few pairs exactly one response has a format",), absent=True)
    note = "by chance alone, one interval in twenty does not include 0"
    return _bias_table("Formats", a.formats, (_BIAS_NOTE, note))


def _views(a: Audit) -> Section:
    v = a.views
    header = ("", "with stated view", "question alone", "shift, points")
    rows = [(row.name, share(row.stated), share(row.alone), points(row.shift)) for row in v.rows]
    notes = [
        f"share of {counted(v.questions, 'question')} on which the false answer is picked, with and without a stated "
        f"view that agrees with it; personal: mean over {counted(v.people, 'user')}; intervals by bootstrap over "
        "questions",
        "shift: the effect of the stated view; the levels only show what the model knows",
    ]
    return Section("Agreement with stated false views", header, tuple(rows), tuple(notes))


def _echo(a: Audit) -> Section:
    title = "User texts"
    if (e := a.echo) is None:
        return Section(title, (), (), ("no comparison has a user_text",), absent=True)
    rows = [
        ("accuracy higher with the text by, points", points(e.gain)),
        ("log loss lower with the text by, nats", nats(e.nats_saved, "+")),
    ]
    if e.with_text is not None and e.without_text is not None:
        rows = [
            (
                f"response that repeats more of the text: chosen by users, of {counted(e.with_text.pairs, 'pair')}",
                share(e.with_text.people),
            ),
            ("picked without the text", share_of(e.without_text)),
            ("picked with the text", share_of(e.with_text)),
            ("shift by the text, points", points(e.shift)),
            *rows,
        ]
    size = counted(e.comparisons, "comparison")
    note = f"{size} with user_text; repeated are distinct content words of four or more letters"
    return Section(title, ("", ""), tuple(rows), (note,))


def share_of(bias: Bias) -> str:
    """The first model's share of picks, in percent."""
    return f"{100 * next(iter(bias.picks.values())):.1f}%"


def _flagged(a: Audit) -> Section:
    title = "Flagged words"
    if (f := a.flagged) is None:
        return Section(title, (), (), ("no list of words was given (--words FILE)",), absent=True)
    notes = [f"{f.answers} distinct responses contain one of {f.phrases} words or phrases"]
    if f.leaning is None:
        return Section(title, (), (), (*notes, "no decided pair has exactly one flagged response"), absent=True)
    return _bias_table(title, [f.leaning], (*notes, _BIAS_NOTE))


def _flagged_users(f: Flagged) -> Section:
    header = ("user", "pairs", "personal", "generic", "uniform", "not generic", "not uniform")
    rows = [
        (
            one.user,
            str(one.pairs),
            *(f"{one.picks[name]:g}" for name in (PERSONAL, GENERIC, UNIFORM)),
            *(f"{one.only_personal[name]:g}" for name in (GENERIC, UNIFORM)),
        )
        for one in f.people[:_SHOWN]
    ]
    notes = [
        "pairs: with exactly one flagged response; then how many flagged responses each model picks, and how many the "
        "personal model picks and the generic user, or the uniform model, does not"
    ]
    if left := len(f.people) - len(rows):
        notes.append(f"{left} more are in the JSON file")
    return Section("Flagged words, by user", header, tuple(rows), tuple(notes))
