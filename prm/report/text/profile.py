"""The description of a log as text: titled tables with notes, the same for the terminal and the page."""

import math

from prm.data.profile import Description, Rate
from prm.data.profile.artifacts import LEAST_PAIRS, LEAST_SHARE, SURE
from prm.data.profile.counts import AMPLE, ENOUGH, Holders
from prm.data.profile.heterogeneity import LEAST
from prm.data.profile.token_lengths import Lengths
from prm.data.sources.collector import ALIKE, distinguishable
from prm.io.formatting import NONE, estimated
from prm.metrics import Estimate
from prm.report.section import Section

_FORMATS_SHOWN = 10


def sections(d: Description) -> list[Section]:
    """All tables of the description, without verdict and pictures."""
    parts = [Section("Rows and pairs", (), (), d.account), _people(d), _histogram(d), _overlap(d), _differences(d)]
    if d.tokens is not None:
        parts.append(_tokens(d))
    return [*parts, _faults(d), _formats(d)]


def headline(d: Description) -> str:
    """The verdict's level as a sentence."""
    missing = "there is little data" if d.differences.systematic else "it is not certain that users differ"
    levels = {
        "no": "No, by the rule of thumb.",
        "thin": f"Perhaps: {missing}.",
        "enough": "Yes, by the rule of thumb.",
    }
    return f"Enough data to train personal models? {levels[d.verdict.level]}"


def share(e: Estimate | None) -> str:
    """A share in percent, with its interval if that is finite."""
    return estimated(e, scale=100.0, unit="%")


def percent(value: float) -> str:
    """A share in [0, 1] in percent; a dash if it is not finite."""
    return f"{100 * value:.1f}%" if math.isfinite(value) else NONE


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _people(d: Description) -> Section:
    people = d.people
    low, median, high = people.quartiles
    rows = [
        ("users", f"{people.people:,}"),
        ("comparisons, of which ties", f"{people.comparisons:,}, {people.ties:,}"),
        (
            "comparisons per user, without ties: 25%, 50%, 75%, maximum",
            f"{low:,g}, {median:,g}, {high:,g}, {people.most:,}",
        ),
        ("distinct responses that a user compared, median", f"{people.median_answers:,g}"),
        *((f"users with {h.least} or more comparisons", _holders(h)) for h in (people.enough, people.ample)),
        ("longer response (in words) was chosen", _rate_text(d.longer_won)),
        ("response shown first was chosen", _rate_text(d.first_won) if d.first_won else "not in the log"),
    ]
    notes = ["95% intervals by bootstrap over users; without ties and responses of equal length"]
    if people.quartiles[1] > 1.5 * people.median_answers:
        notes.append(
            "users compared few responses many times: pairs made from ratings or rankings are not independent, and "
            "are worth less than their number"
        )
    return Section("Users", ("", ""), tuple(rows), tuple(notes))


def _holders(h: Holders) -> str:
    return f"{h.people:,} ({percent(h.share_of_people)}), with {percent(h.share_of_comparisons)} of the comparisons"


def _rate_text(rate: Rate | None) -> str:
    return "-" if rate is None else f"{share(rate.share)} of {rate.comparisons:,}"


def _histogram(d: Description) -> Section:
    rows = tuple(
        (b.label, f"{b.people:,}", percent(b.share_of_people), percent(b.share_of_comparisons))
        for b in d.people.histogram
    )
    header = ("comparisons", "users", "of users", "of comparisons")
    note = (
        f"without ties; by the rule of thumb a head for one user needs {ENOUGH} comparisons or more, and a gain can "
        f"be expected from {AMPLE}"
    )
    return Section("Comparisons per user", header, rows, (note,))


def _overlap(d: Description) -> Section:
    o, agreement = d.overlap, d.differences.agreement
    mean, median, maximum = o.people_per_prompt
    rows = [
        ("prompts, compared by two or more users", f"{o.prompts:,}, {percent(o.share_of_prompts)}"),
        ("users per prompt: mean, median, maximum", f"{mean:,.1f}, {median:,g}, {maximum:,}"),
        ("pairs of responses, compared by two or more users", f"{o.pairs:,}, {percent(o.share_of_pairs)}"),
        ("comparisons on such pairs", percent(o.share_of_comparisons)),
    ]
    if agreement is None:
        return Section("Agreement", ("", ""), tuple(rows), ("no pair was decided by two users: nothing to compare",))
    agreed = f"{share(agreement.agree)} of {agreement.comparisons:,} comparisons on {agreement.pairs:,} pairs"
    rows.append(("two users agree on a pair, without ties", agreed))
    note = "random choices agree in 50%; 95% interval by bootstrap over pairs"
    return Section("Agreement", ("", ""), tuple(rows), (note,))


def _differences(d: Description) -> Section:
    differences, rows = d.differences, []
    if (taste := differences.length_taste) is not None:
        against = "others on the same prompts" if taste.within_prompts else "everyone"
        text = f"chi2 = {taste.chi2:.0f} with {taste.people - 1:,} degrees of freedom, {_p(taste.p)}"
        rows.append((f"share of longer responses chosen, {taste.people:,} users against {against}", text))
        text = f"{taste.longer:,} and {taste.shorter:,} (by chance up to {taste.by_chance:.1f} of each)"
        rows.append(("users who clearly prefer the longer, and the shorter response", text))
    if (dissent := differences.dissent) is not None:
        text = f"r = {dissent.correlation:.2f} across {dissent.people:,} users, {_p(dissent.p)}"
        rows.append((f"the same users vote against the majority ({percent(dissent.rate)} of votes)", text))
    if (near := differences.neighbours) is not None:
        gain = estimated(near.gain, scale=100.0, sign="+", unit=" points")
        one = "" if math.isfinite(near.gain.low) else ", of one pair"
        text = f"{percent(near.personal)} against {percent(near.alike)}: {gain}{one}"
        people = f"{near.votes:,} votes, {near.people:,} users"
        rows.append((f"votes predicted from users who agreed before ({people})", text))
    notes = [
        "voting against the majority may be carelessness; votes that users who agreed before predict, on other "
        "responses and better than the best rule for everyone, are not"
    ]
    missing = {
        "preference for length": taste,
        "votes against the majority": dissent,
        "users who agreed before": near,
    }
    if none := [name for name, signal in missing.items() if signal is None]:
        notes.append(f"too few comparisons ({LEAST} per user are needed) or no variation in: {', '.join(none)}")
    title = "Do users differ systematically?"
    return Section(title, ("", ""), tuple(rows), tuple(notes if rows else notes[1:]), absent=not rows)


def _tokens(d: Description) -> Section:
    t = d.tokens
    assert t is not None
    header = ("tokens", "texts", "minimum", "median", "90%", "99%", "maximum")
    rows = (("prompts, with chat template", *_lengths(t.prompts)), ("responses", *_lengths(t.answers)))
    sampled = (
        f"{t.sequences:,} of {t.of_sequences:,} drawn at random" if t.sequences < t.of_sequences else "all of them"
    )
    notes = [
        f"prompts with a response: {t.sequences:,} tokenized ({sampled}); at most {t.max_length:,} tokens each",
        f"{t.cut:,} of them ({percent(t.cut / t.sequences)}) are truncated and lose {t.tokens_lost:,} tokens of the "
        "prompt, oldest first"
        if t.cut
        else "none of them is truncated",
    ]
    if t.unfit:
        notes.append(
            f"warning: responses that do not fit, at which training stops: {t.unfit:,}; first: {t.first_unfit}"
        )
    return Section("Tokens", header, rows, tuple(notes))


def _lengths(lengths: Lengths) -> tuple[str, ...]:
    values = (lengths.texts, lengths.minimum, lengths.median, lengths.p90, lengths.p99, lengths.maximum)
    return tuple(f"{value:,}" for value in values)


def _faults(d: Description) -> Section:
    f = d.faults
    rows = (
        ("bad rows, skipped", f"{f.bad:,}"),
        ("comparisons that one user made twice in the same way, counted once", f"{f.duplicates:,}"),
        ("pairs on which one user chose both ways", f"{f.contradictions:,}"),
        (f"groups of ids that {ALIKE}", f"{f.alike:,}"),
    )
    notes = [f"bad: {bad['row_of']}: {bad['fault']}" for bad in f.first_bad]
    notes += [f"the same user? {' and '.join(distinguishable(ids))}" for ids in f.first_alike]
    return Section("Faults", ("", ""), rows, tuple(notes))


def _formats(d: Description) -> Section:
    a = d.artefacts
    listed = a.formats[: max(_FORMATS_SHOWN, len(a.flagged))]
    rows = tuple(
        (f"{f.name} (!)" if f.flagged else f.name, f"{f.pairs:,}", percent(f.share_of_pairs), percent(f.chosen))
        for f in listed
    )
    sampled = f", {a.pairs:,} of {a.of_pairs:,} decided pairs drawn at random" if a.pairs < a.of_pairs else ""
    notes = [f"pairs in which exactly one response has the format, and how often that one was chosen{sampled}"]
    notes += [f"warning: {f.words}" for f in a.flagged]
    if a.flagged:
        notes.append(
            f"these formats alone predict the label of {percent(a.decided)} of all pairs, {percent(a.decided_rightly)} "
            "of them correctly: put both responses into the same format before training"
        )
    else:
        notes.append(
            f"no format that only one response has in {percent(LEAST_SHARE)} of the pairs, and in {LEAST_PAIRS} or "
            f"more, is chosen, or is rejected, in {percent(SURE)} of them"
        )
    return Section("Formats", ("only one response", "pairs", "of all", "chosen"), rows, tuple(notes))
