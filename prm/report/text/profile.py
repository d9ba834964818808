"""A description in words: titled tables with notes, the same for the terminal and the page."""

import math
from dataclasses import dataclass

from prm.data.profile import Description, Rate
from prm.data.profile.artifacts import LEAST_PAIRS, LEAST_SHARE, SURE
from prm.data.profile.counts import AMPLE, ENOUGH, Holders
from prm.data.profile.heterogeneity import LEAST
from prm.data.profile.token_lengths import Lengths
from prm.data.sources.feedback import ALIKE, distinguishable
from prm.io.formatting import NONE, estimated
from prm.metrics import Estimate

_FORMATS_SHOWN = 10


@dataclass(frozen=True)
class Section:
    """One table: `rows` as wide as `header`, perhaps none; `notes` stand below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def sections(d: Description) -> list[Section]:
    """The description, part by part, verdict and pictures aside."""
    found = [Section("Rows and pairs", (), (), d.account), _people(d), _histogram(d), _overlap(d), _differences(d)]
    if d.tokens is not None:
        found.append(_tokens(d))
    return [*found, _faults(d), _formats(d)]


def headline(d: Description) -> str:
    """The verdict's level in words."""
    answers = {"no": "No.", "thin": "Perhaps: it is thin.", "enough": "Yes, by the rule of thumb."}
    return f"Enough to learn who likes what? {answers[d.verdict.level]}"


def share(e: Estimate | None) -> str:
    """A share in percent, with its interval where there is one."""
    return estimated(e, scale=100.0, unit="%")


def percent(value: float) -> str:
    """A share in [0, 1] in percent; a dash where there is none."""
    return f"{100 * value:.1f}%" if math.isfinite(value) else NONE


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _people(d: Description) -> Section:
    people = d.people
    low, median, high = people.quartiles
    rows = [
        ("people", f"{people.people:,}"),
        ("comparisons, ties among them", f"{people.comparisons:,}, {people.ties:,}"),
        (
            "comparisons per person, ties aside: 25%, 50%, 75%, most",
            f"{low:,g}, {median:,g}, {high:,g}, {people.most:,}",
        ),
        ("distinct answers that a person compared, median", f"{people.median_answers:,g}"),
        *((f"people with {h.least} or more", _holders(h)) for h in (people.enough, people.ample)),
        ("longer answer (in words) was chosen", _rate(d.longer_won)),
        ("answer shown first was chosen", _rate(d.first_won) if d.first_won else "the log does not tell"),
    ]
    notes = ["95% intervals by bootstrap over people; ties and answers of equal length aside"]
    if people.quartiles[1] > 1.5 * people.median_answers:
        notes.append(
            "people compared few answers again and again: if pairs were made of ratings or rankings, they are not "
            "independent, and say less than their number"
        )
    return Section("People", ("", ""), tuple(rows), tuple(notes))


def _holders(h: Holders) -> str:
    return f"{h.people:,} ({percent(h.share_of_people)}), with {percent(h.share_of_comparisons)} of the comparisons"


def _rate(rate: Rate | None) -> str:
    return "-" if rate is None else f"{share(rate.share)} of {rate.comparisons:,}"


def _histogram(d: Description) -> Section:
    rows = tuple(
        (b.label, f"{b.people:,}", percent(b.share_of_people), percent(b.share_of_comparisons))
        for b in d.people.histogram
    )
    header = ("comparisons", "people", "of people", "of comparisons")
    note = (
        f"ties aside; {ENOUGH} is the least that can carry a head of one's own, a gain is to be expected from {AMPLE}"
    )
    return Section("Comparisons per person", header, rows, (note,))


def _overlap(d: Description) -> Section:
    o, agreement = d.overlap, d.differences.agreement
    mean, median, most = o.people_per_prompt
    rows = [
        ("prompts, judged by two or more people", f"{o.prompts:,}, {percent(o.share_of_prompts)}"),
        ("people per prompt: mean, median, most", f"{mean:,.1f}, {median:,g}, {most:,}"),
        ("pairs of answers, judged by two or more people", f"{o.pairs:,}, {percent(o.share_of_pairs)}"),
        ("comparisons on such pairs", percent(o.share_of_comparisons)),
    ]
    if agreement is None:
        return Section("Agreement", ("", ""), tuple(rows), ("no pair was decided by two people: nothing to compare",))
    agreed = f"{share(agreement.agree)} of {agreement.judgements:,} on {agreement.pairs:,} pairs"
    rows.append(("two people agree on a pair, ties aside", agreed))
    note = "coin flips agree in 50%; 95% interval by bootstrap over pairs"
    return Section("Agreement", ("", ""), tuple(rows), (note,))


def _differences(d: Description) -> Section:
    found, rows = d.differences, []
    if (taste := found.length_taste) is not None:
        against = "others on the same prompts" if taste.within_prompts else "everyone"
        text = f"chi2 = {taste.chi2:.0f} with {taste.people - 1:,} degrees of freedom, {_p(taste.p)}"
        rows.append((f"longer-won rate, {taste.people:,} people against {against}", text))
        text = f"{taste.longer:,} and {taste.shorter:,} (by chance up to {taste.by_chance:.1f} of each)"
        rows.append(("of them, clearly prefer the longer and the shorter answer", text))
    if (dissent := found.dissent) is not None:
        text = f"r = {dissent.correlation:.2f} across {dissent.people:,} people, {_p(dissent.p)}"
        rows.append((f"the same people go against the majority ({percent(dissent.rate)} of votes)", text))
    if (near := found.neighbours) is not None:
        gain = estimated(near.gain, scale=100.0, sign="+", unit=" points")
        one = "" if math.isfinite(near.gain.low) else ", of one pair"
        text = f"{percent(near.personal)} against {percent(near.alike)}: {gain}{one}"
        rows.append((f"votes foretold by those who agreed before ({near.votes:,} votes, {near.people:,} people)", text))
    notes = [
        "going against the majority may be careless judging; foretelling by those who agreed before, beyond the best "
        "rule that treats everyone alike and on other answers, is not"
    ]
    missing = {"taste for length": taste, "going against the majority": dissent, "those who agreed before": near}
    if none := [name for name, signal in missing.items() if signal is None]:
        notes.append(f"too few judgements (people need {LEAST}) or all alike, so nothing to say of: {', '.join(none)}")
    return Section("Do people differ systematically?", ("", ""), tuple(rows), tuple(notes if rows else notes[1:]))


def _tokens(d: Description) -> Section:
    t = d.tokens
    assert t is not None
    header = ("tokens", "texts", "least", "median", "90%", "99%", "most")
    rows = (("prompts, with chat template", *_lengths(t.prompts)), ("answers", *_lengths(t.answers)))
    sampled = (
        f"{t.sequences:,} of {t.of_sequences:,} drawn at random" if t.sequences < t.of_sequences else "all of them"
    )
    notes = [
        f"prompts with an answer: {t.sequences:,} looked at ({sampled}); at most {t.max_length:,} tokens each",
        f"{t.cut:,} of them ({percent(t.cut / t.sequences)}) lose {t.tokens_lost:,} tokens of the prompt, oldest first"
        if t.cut
        else "none of them is cut",
    ]
    if t.unfit:
        notes.append(
            f"warning: answers that do not fit at all, where training stops: {t.unfit:,}; first: {t.first_unfit}"
        )
    return Section("Tokens", header, rows, tuple(notes))


def _lengths(lengths: Lengths) -> tuple[str, ...]:
    values = (lengths.texts, lengths.minimum, lengths.median, lengths.p90, lengths.p99, lengths.maximum)
    return tuple(f"{value:,}" for value in values)


def _faults(d: Description) -> Section:
    f = d.faults
    rows = (
        ("bad rows, skipped", f"{f.bad:,}"),
        ("said twice by one person, counted once", f"{f.duplicates:,}"),
        ("pairs judged both ways by one person", f"{f.contradictions:,}"),
        (f"groups of ids that {ALIKE}", f"{f.alike:,}"),
    )
    notes = [f"bad: {bad['row_of']}: {bad['fault']}" for bad in f.first_bad]
    notes += [f"one person? {' and '.join(distinguishable(ids))}" for ids in f.first_alike]
    return Section("Faults", ("", ""), rows, tuple(notes))


def _formats(d: Description) -> Section:
    a = d.artefacts
    shown = a.formats[: max(_FORMATS_SHOWN, len(a.flagged))]
    rows = tuple(
        (f"{f.name} (!)" if f.flagged else f.name, f"{f.pairs:,}", percent(f.share_of_pairs), percent(f.chosen))
        for f in shown
    )
    sampled = f", {a.pairs:,} of {a.of_pairs:,} decided pairs drawn at random" if a.pairs < a.of_pairs else ""
    notes = [f"pairs in which exactly one answer has the format, and how often that one was chosen{sampled}"]
    notes += [f"warning: {f.words}" for f in a.flagged]
    if a.flagged:
        notes.append(
            f"these formats alone decide {percent(a.decided)} of all pairs, {percent(a.decided_rightly)} of them "
            "rightly, without reading anything: put both answers into one format before training"
        )
    else:
        notes.append(
            f"no format that tells {percent(LEAST_SHARE)} of the pairs apart, and {LEAST_PAIRS} or more, goes with "
            f"being chosen, or with being rejected, in {percent(SURE)} of them"
        )
    return Section("Formats", ("one answer", "pairs", "of all", "chosen"), rows, tuple(notes))
