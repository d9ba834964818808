"""Is there enough in a log to learn who likes what? A rule of thumb with its reasons, not a proof.

What it rests on. A linear head per person on a frozen backbone needs tens of judgements: simulated people who go by
length reached 0.76 to 0.79 of held-out judgements with about 115 labels each and 0.85 with about 1,150, where one head
for all reached 0.63. Real people are noisier, and what cannot be seen in the length of an answer takes more. Hence 30
as the least that can carry a head at all, and 100 as the least where a gain is to be expected. Amounts alone prove
nothing: where people do not differ, any number of judgements only learns the same taste again.

The probe of neighbours outranks amounts where it foretells much (`Differences.foretold`): it is measured on this log,
and amounts are what other logs taught. +30 points foretold became +24.5 (TL;DR), +31 became +23. Where it foretells
little it proves little, either way: +2.5 became +0.5 on new answers and +10.5 on known ones (Jester).
"""

from dataclasses import dataclass
from typing import Literal

from prm.data.profile.collaborative import Neighbours
from prm.data.profile.counts import AMPLE, ENOUGH, Overlap, UserCounts
from prm.data.profile.heterogeneity import Agreement, Dissent, LengthTaste
from prm.io.formatting import estimated
from prm.metrics import Estimate

Level = Literal["no", "thin", "enough"]

_HALF = 0.5
_MUCH = 0.05  # accuracy that the probe surely foretells
SIGNIFICANT, _HINT = 0.01, 0.05  # p below which people surely differ, and may differ
_SAME, _SAME_JUDGEMENTS, _SAME_SHARE = 0.95, 100, 0.1  # everybody says the same, on so much of the log


@dataclass(frozen=True)
class ProfileVerdict:
    """`level`: `no` (do not train personal models on this), `thin` (may be tried) or `enough`; `reasons`: sentences."""

    level: Level
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Differences:
    """What tells people apart; `None` where the log holds too little to say."""

    agreement: Agreement | None
    length_taste: LengthTaste | None
    dissent: Dissent | None
    neighbours: Neighbours | None

    @property
    def opposed_in_length(self) -> bool:
        """True where some people surely prefer the longer answer, others the shorter one."""
        taste = self.length_taste
        return taste is not None and taste.opposed and taste.p < SIGNIFICANT

    @property
    def neighbours_help(self) -> bool:
        """True where those who agreed with somebody before foretell their votes better than everyone alike."""
        # three standard errors: the interval has two, but not the luck in which pairs weighed and which were foretold
        gain = None if self.neighbours is None else self.neighbours.gain
        return gain is not None and gain.low > gain.value / 3.0 > 0.0

    @property
    def predicted(self) -> Estimate | None:
        """The gain that the probe foretells, in [0, 1], where it is much beyond doubt; else `None`."""
        much = self.neighbours is not None and self.neighbours_help and self.neighbours.gain.low >= _MUCH
        return self.neighbours.gain if self.neighbours is not None and much else None

    @property
    def may_differ(self) -> bool:
        """True where a signal is beyond its interval, sure or not."""
        taste, near = self.length_taste, self.neighbours
        return (taste is not None and taste.p < _HINT) or (near is not None and near.gain.low > 0.0)

    @property
    def systematic(self) -> bool:
        """True where people surely like different things, which different care cannot explain."""
        return self.opposed_in_length or self.neighbours_help


def judge(people: UserCounts, overlap: Overlap, differences: Differences, decided: float = 0.0) -> ProfileVerdict:
    """The verdict on a log; `decided` is the share in [0, 1] of pairs that formats give away.

    `no` where fewer than two people judged or nobody judged enough, or where people who judged the same say the
    same. `enough` where people differ systematically, and two or more with ample judgements hold half of them; where
    the probe foretells much, with enough judgements. `thin` is what lies between, and where the probe foretells much
    of people who judged little.
    """
    reasons = [_amount(people), _difference(differences)]
    differ = differences.systematic
    predicted = differences.predicted
    nobody = people.enough.people == 0 and predicted is None
    most = people.ample if predicted is None else people.enough
    if people.people < 2 or nobody or (_all_agree(overlap, differences) and not differ):
        level: Level = "no"
    elif most.people >= 2 and most.share_of_comparisons >= _HALF and differ:
        level = "enough"
    else:
        level = "thin"
    if decided > 0.0:
        reasons.append(f"First mend the formats: they give the chosen answer away in {_percent(decided)} of pairs.")
    return ProfileVerdict(level, (*reasons, _advice(level, predicted, people.enough.people)))


def _all_agree(overlap: Overlap, differences: Differences) -> bool:
    found = differences.agreement
    if found is None or found.judgements < _SAME_JUDGEMENTS or overlap.share_of_comparisons < _SAME_SHARE:
        return False
    return found.agree.low >= _SAME


def _amount(people: UserCounts) -> str:
    if people.people == 1:
        return "One person judged everything: there is nobody to tell apart."
    enough, ample = people.enough, people.ample
    others = people.people - enough.people
    text = (
        f"{enough.people:,} of {people.people:,} people ({_percent(enough.share_of_people)}) have {ENOUGH} or more "
        f"comparisons (ties aside), the least that can carry a person's own head, and hold "
        f"{_percent(enough.share_of_comparisons)} of them; {AMPLE} or more: {ample.people:,} people "
        f"({_percent(ample.share_of_comparisons)} of the comparisons)."
    )
    if others:
        share = max(1.0 - enough.share_of_comparisons, 0.0)
        text += (
            f" The other {others:,}, with {_percent(share)} of the comparisons, would get the generic user's score or "
            "one close to it."
        )
    return text


def _difference(d: Differences) -> str:
    """What the signals say together, without more certainty than they have."""
    agree = estimated(d.agreement.agree, scale=100.0, unit="%") if d.agreement else ""
    known = f"Two people agree on a pair in {agree} of cases. " if agree else ""
    signals = [*_length_signal(d), *_neighbour_signal(d)]
    if not signals:
        return f"{known}Whether people differ systematically cannot be told from this log."
    if d.systematic:
        return f"{known}People differ systematically: {'; '.join(text for text, sign in signals if sign)}."
    text = "; ".join(text for text, _ in signals)
    sign = "A sign, but no sure one," if d.may_differ else "No sure sign"
    return f"{known}{sign} that people like different things: {text}. Other tastes are not ruled out."


def _length_signal(d: Differences) -> list[tuple[str, bool]]:
    """(words, whether it is a sign of different tastes)."""
    taste = d.length_taste
    if taste is None:
        return []
    counts = f"{taste.longer:,} prefer the longer answer and {taste.shorter:,} the shorter one"
    if d.opposed_in_length:
        return [(f"{counts}, of {taste.people:,} people", True)]
    counts += f", of {taste.people:,}, where chance alone makes up to {taste.by_chance:.1f} of each"
    if taste.p < SIGNIFICANT:
        return [(f"how far they go by length differs, which may be care as well as taste ({counts})", False)]
    if taste.p < _HINT:
        return [(f"how far they go by length may differ, p = {taste.p:.3f} ({counts})", False)]
    return [(f"chance explains how far their taste for length differs, p = {taste.p:.2f} ({counts})", False)]


def _neighbour_signal(d: Differences) -> list[tuple[str, bool]]:
    if d.neighbours is None:
        return []
    gain = d.neighbours.gain
    shown = estimated(gain, scale=100.0, sign="+", unit=" points")
    foretell = "those who agreed with a person before foretell that person"
    alike = "than the best rule that treats all alike"
    if d.neighbours_help:
        text = f"{foretell} better {alike} ({shown})"
    elif gain.low > 0.0:
        text = f"{foretell} better {alike} ({shown}), if not by so much that luck in the choice of pairs is ruled out"
    elif gain.low == gain.high == 0.0:
        text = f"{foretell} just as the best rule does that treats all alike"
    elif gain.high < 0.0:
        text = f"{foretell} worse {alike} ({shown})"
    else:
        text = f"whether {foretell} better {alike} cannot be told ({shown})"
    return [(text, d.neighbours_help)]


def _advice(level: Level, predicted: Estimate | None, with_enough: int) -> str:
    if level == "no":
        return "A uniform model is what this log can teach; more judgements by the same people would change that."
    start = "A personal model may gain little" if level == "thin" else "A personal model is worth training"
    if predicted is not None:
        shown = estimated(predicted, scale=100.0, sign="+", unit=" points")
        start = f"A personal model is worth training, by the {shown} that are foretold"
        if not with_enough:
            start += " ('users.kind: bayes' or 'cluster': nobody judged enough for a head of their own)"
    return f"{start}: the proof is 'prm evaluate' on held-out judgements, against the tuned uniform model."


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
