"""An audit in words: titled tables with notes, the same for the terminal and the page."""

import math
from collections.abc import Iterable

from prm.evaluation.audit import Audit
from prm.evaluation.audit.biases import Bias
from prm.evaluation.audit.calibration import LEAST_COMPARED
from prm.evaluation.audit.flagged_words import Flagged
from prm.evaluation.evaluate import GENERIC, PERSONAL, UNIFORM
from prm.metrics import LEAST_JUDGED
from prm.report.text.audit_users import changes, gains, losers
from prm.report.text.evaluation import calibration_error
from prm.report.text.profile import Section, share
from prm.report.text.units import nats, percent, points

_SHOWN = 10


def headline(a: Audit) -> str:
    """The short answer: how many gain and lose, by likelihood."""
    counts = a.people.count("nats")
    n = len(a.people.people)
    return (
        f"Of {n} {'person' if n == 1 else 'people'}, {counts['gains']} surely gain by personalisation (in nats), "
        f"{counts['loses']} surely lose, and of {counts['cannot be told']} it cannot be told."
    )


def sections(a: Audit) -> list[Section]:
    """The audit, part by part, pictures aside."""
    found = [gains(a.people, a.strangers), losers(a.people), changes(a.people), _reliability(a), _drift(a)]
    found += [_length(a), _formats(a), _views(a), _echo(a), _flagged(a)]
    return [*found, _flagged_people(a.flagged)] if a.flagged is not None and a.flagged.people else found


def figures(a: Audit) -> list[tuple[str, str]]:
    """(figure, what it is) for the head of the page."""
    won = [one.gain for one in a.people.people if not math.isnan(one.gain)]
    mean = f"{100 * sum(won) / len(won):+.1f}" if won else "-"
    found = [
        (str(a.people.count("nats")["gains"]), "gain in nats"),
        (str(len(a.people.losers)), "lose in picks or nats"),
        (mean, "points of accuracy, mean over people"),
        (points(a.views.rows[0].shift), "points towards stated false views"),
    ]
    if a.length is not None:
        found.append((points(a.length.excess), "points of longer answers beyond their own choice"))
    return found


def _reliability(a: Audit) -> Section:
    header = ("judgements learnt from", "people", "comparisons", "", "said %", "came out %", "calibration error")
    rows = [
        (
            *((group.judgements, str(group.people), str(group.comparisons)) if i == 0 else ("", "", "")),
            name,
            percent(c.predicted),
            percent(c.observed),
            calibration_error(c),
        )
        for group in a.reliability
        for i, (name, c) in enumerate(group.models.items())
    ]
    notes = [
        "said: mean P(picked answer); came out: how often that was chosen; in brackets, the error that chance alone "
        "gives where every probability is right"
    ]
    few = [f"{group.judgements} ({group.comparisons})" for group in a.reliability if not group.models]
    if few:
        notes.append(f"left out, with fewer than {LEAST_COMPARED} comparisons: {', '.join(few)}")
    if rest := a.comparisons - sum(group.comparisons for group in a.reliability):
        notes.append(f"in no group: {rest} comparisons by people of whom the run does not say how many it learnt from")
    title = "How sure the models are, and how right, by judgements learnt from"
    return Section(title, header if rows else (), tuple(rows), tuple(notes if rows else notes[1:]))


def _drift(a: Audit) -> Section:
    d = a.drift
    rows = (
        ("picks that are the same", share(d.agreement)),
        ("mean distance of P(chosen)", nats(d.distance)),
        ("nats of the generic user", nats(d.generic_nats)),
        ("nats of the uniform model", nats(d.uniform_nats)),
        ("nats saved by the generic user", nats(d.saved, "+")),
        ("accuracy won by the generic user, points", points(d.gain)),
    )
    return Section("Strangers: the generic user against the uniform model", ("", ""), rows)


def _leanings(title: str, found: Iterable[Bias], notes: tuple[str, ...]) -> Section:
    header = ("an answer that", "pairs", "people %", "personal %", "uniform %", "excess, points")
    rows = tuple(
        (
            f.name,
            str(f.pairs),
            *(percent(value) for value in (f.people.value, f.picks[PERSONAL], f.picks[UNIFORM])),
            points(f.excess),
        )
        for f in found
    )
    return Section(title, header if rows else (), rows, notes)


def _length(a: Audit) -> Section:
    title = "Length"
    if a.length is None:
        return Section(title, (), (), ("no pair of answers differs in length",))
    judged = [one for one in a.lengths if one.pairs >= LEAST_JUDGED]
    notes = ["excess: how much more often the personal model picks such an answer than the judges chose it"]
    strength = [one.correlation for one in judged if not math.isnan(one.correlation)]
    if strength:
        low, high = min(strength), max(strength)
        mean = sum(strength) / len(strength)
        notes.append(
            f"correlation of a person's score with length, in people with {LEAST_JUDGED} or more such pairs: "
            f"mean {mean:+.2f}, from {low:+.2f} to {high:+.2f}"
        )
    beyond = sorted(judged, key=lambda one: -abs(one.picks[PERSONAL] - one.person))[:3]
    notes += [
        f"{one.user}: chose the longer in {percent(one.person)}% of {one.pairs} pairs, is given it in "
        f"{percent(one.picks[PERSONAL])}% (uniform: {percent(one.picks[UNIFORM])}%)"
        for one in beyond
    ]
    return _leanings(title, [a.length], tuple(notes))


def _formats(a: Audit) -> Section:
    if not a.formats:
        return Section("Formats", (), (), ("no format tells enough pairs apart",))
    note = "with so many formats, one interval in twenty leaves out 0 by chance"
    return _leanings("Formats", a.formats, (note,))


def _views(a: Audit) -> Section:
    v = a.views
    header = ("", "view stated", "question alone", "shift, points")
    rows = [(row.name, share(row.stated), share(row.alone), points(row.shift)) for row in v.rows]
    notes = [
        f"{v.questions} questions whose false answer agrees with a view stated before them, read as {v.people} people; "
        "share of picks that are the false answer; intervals by bootstrap over questions",
        "the shift is what stating a view does; the level is what the model knows, and little of it says much",
    ]
    return Section("Agreement with stated false views", header, tuple(rows), tuple(notes))


def _echo(a: Audit) -> Section:
    title = "People's own words"
    if (e := a.echo) is None:
        return Section(title, (), (), ("no comparison has a user_text",))
    rows = [("accuracy won by reading them, points", points(e.gain)), ("nats saved", nats(e.nats_saved, "+"))]
    if e.with_text is not None and e.without_text is not None:
        rows = [
            (
                f"the answer that repeats more of them: chosen by people, of {e.with_text.pairs}",
                share(e.with_text.people),
            ),
            ("picked without reading them", share_of(e.without_text)),
            ("picked after reading them", share_of(e.with_text)),
            ("shift towards them, points", points(e.shift)),
            *rows,
        ]
    note = (
        f"{e.comparisons} comparisons with user_text; words: distinct ones of four or more letters that carry content"
    )
    return Section(title, ("", ""), tuple(rows), (note,))


def share_of(leaning: Bias) -> str:
    """The first model's picks in percent."""
    return f"{100 * next(iter(leaning.picks.values())):.1f}%"


def _flagged(a: Audit) -> Section:
    title = "Flagged words"
    if (f := a.flagged) is None:
        return Section(title, (), (), ("no list of words was given (--words FILE)",))
    notes = [f"{f.answers} distinct answers hold one of {f.phrases} words or phrases"]
    if f.leaning is None:
        return Section(title, (), (), (*notes, "no decided pair has exactly one flagged answer"))
    return _leanings(title, [f.leaning], tuple(notes))


def _flagged_people(f: Flagged) -> Section:
    header = ("person", "pairs", "personal", "generic", "uniform", "not by generic", "not by uniform")
    rows = [
        (
            one.user,
            str(one.pairs),
            *(f"{one.picks[name]:g}" for name in (PERSONAL, GENERIC, UNIFORM)),
            *(f"{one.only_personal[name]:g}" for name in (GENERIC, UNIFORM)),
        )
        for one in f.people[:_SHOWN]
    ]
    notes = ["flagged answers picked by each model; in the last columns by the personal model alone"]
    if left := len(f.people) - len(rows):
        notes.append(f"{left} more are in the JSON file")
    return Section("Flagged words, person by person", header, tuple(rows), tuple(notes))
