"""Is a log enough for a personalised model? A rule of thumb with its reasons, not a proof.

A linear head per user on a frozen backbone needs tens of comparisons: simulated users who prefer longer or shorter
responses reached an accuracy of 0.76 to 0.79 on held-out comparisons with about 115 labels each and 0.85 with about
1,150, where one head for all reached 0.63. Real users are noisier, and preferences for other things than length need
more. Hence 30 as the minimum for a head at all, and 100 as the minimum for an expected gain. Amounts alone prove
nothing: if users do not differ, more comparisons only repeat the same preference, and users who differ in one plain
thing gain from a few comparisons each.

The probe of neighbours overrides amounts if it predicts a large gain (`Differences.predicted`): it is measured on this
log, while amounts come from other logs. A predicted +30 points became +24.5 (TL;DR), +31 became +23. A small predicted
gain proves little either way: +2.5 became +0.5 on new responses and +10.5 on known ones (Jester).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prm.data.comparison import Comparison
from prm.data.profile.collaborative import Neighbours
from prm.data.profile.counts import AMPLE, ENOUGH, Holders, Overlap, UserCounts, enough_and_ample
from prm.data.profile.heterogeneity import Agreement, Dissent, LengthTaste
from prm.errors import counted
from prm.io.formatting import estimated
from prm.metrics import Estimate

Level = Literal["no", "thin", "enough"]

_PROOF = "the proof is 'prm evaluate' on held-out comparisons, against the tuned uniform model"
_HALF = 0.5
_MUCH = 0.05  # lower end of the probe's gain in accuracy that counts as large
SIGNIFICANT, _HINT = 0.01, 0.05  # p below which users differ significantly, and may differ
# users agree: minimum agreement, number of (user, user, pair) and share of comparisons on shared pairs
_SAME, _SAME_JUDGEMENTS, _SAME_SHARE = 0.95, 100, 0.1


@dataclass(frozen=True)
class ProfileVerdict:
    """`level`: `no` (do not train personal models on this), `thin` (may be tried) or `enough`; `reasons`: sentences."""

    level: Level
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Differences:
    """Signals of differences between users; each is `None` if the log is too small."""

    agreement: Agreement | None
    length_taste: LengthTaste | None
    dissent: Dissent | None
    neighbours: Neighbours | None

    @property
    def opposed_in_length(self) -> bool:
        """True if some users significantly prefer the longer response and others the shorter one."""
        taste = self.length_taste
        return taste is not None and taste.opposed and taste.p < SIGNIFICANT

    @property
    def neighbours_help(self) -> bool:
        """True if users who agreed with a user before predict their votes better than the rules without weights."""
        # three standard errors: the interval has two, but does not include the random split of pairs
        gain = None if self.neighbours is None else self.neighbours.gain
        return gain is not None and gain.low > gain.value / 3.0 > 0.0

    @property
    def predicted(self) -> Estimate | None:
        """The gain that the probe predicts, in [0, 1], if it is certainly large; otherwise `None`."""
        much = self.neighbours is not None and self.neighbours_help and self.neighbours.gain.low >= _MUCH
        return self.neighbours.gain if self.neighbours is not None and much else None

    @property
    def may_differ(self) -> bool:
        """True if a signal is significant, even if weakly."""
        taste, near = self.length_taste, self.neighbours
        return (taste is not None and taste.p < _HINT) or (near is not None and near.gain.low > 0.0)

    @property
    def systematic(self) -> bool:
        """True if users certainly like different things, which different care cannot explain."""
        return self.opposed_in_length or self.neighbours_help


def profile_verdict(
    people: UserCounts, overlap: Overlap, differences: Differences, decided: float = 0.0
) -> ProfileVerdict:
    """The verdict on a log; `decided` is the share in [0, 1] of pairs whose label the formatting predicts.

    `no` with fewer than two users, without a user who has enough comparisons, or if users agree on shared pairs.
    `enough` if users differ systematically, and two or more with ample comparisons hold half of all; with a large
    predicted gain, or opposed preferences for length, enough comparisons suffice. Otherwise `thin`, also with a large
    predicted gain for users with few comparisons.
    """
    reasons = [_amount(people.people, people.enough, people.ample), _difference(differences)]
    differ = differences.systematic
    predicted = differences.predicted
    too_few = people.enough.people == 0 and predicted is None
    plain = predicted is not None or differences.opposed_in_length
    holders = people.enough if plain else people.ample
    if people.people < 2 or too_few or (_all_agree(overlap, differences) and not differ):
        level: Level = "no"
    elif holders.people >= 2 and holders.share_of_comparisons >= _HALF and differ:
        level = "enough"
    else:
        level = "thin"
    if decided > 0.0:
        reasons.append(f"First fix the formats: they predict the chosen response in {_percent(decided)} of pairs.")
    return ProfileVerdict(level, (*reasons, _advice(level, predicted, people)))


def _all_agree(overlap: Overlap, differences: Differences) -> bool:
    agreement = differences.agreement
    if agreement is None or agreement.comparisons < _SAME_JUDGEMENTS or overlap.share_of_comparisons < _SAME_SHARE:
        return False
    return agreement.agree.low >= _SAME


def amount(comparisons: Iterable[Comparison]) -> str:
    """The verdict's first reason, how many users have enough comparisons, without reading a text."""
    counts: Counter[str] = Counter()
    for c in comparisons:
        counts[c.user_id] += not c.is_tie
    return _amount(len(counts), *enough_and_ample(np.array(list(counts.values()))))


def _amount(people: int, enough: Holders, ample: Holders) -> str:
    if people == 1:
        return "One user made all comparisons: there are no users to distinguish."
    others = people - enough.people
    text = (
        f"{enough.people:,} of {people:,} users ({_percent(enough.share_of_people)}) have {ENOUGH} or more "
        f"comparisons (ties aside), by the rule of thumb the minimum for a head of their own, and hold "
        f"{_percent(enough.share_of_comparisons)} of them; {AMPLE} or more: {counted(ample.people, 'user')} "
        f"({_percent(ample.share_of_comparisons)} of the comparisons)."
    )
    if others:
        share = max(1.0 - enough.share_of_comparisons, 0.0)
        who = f"The other {others:,}" if others > 1 else "The other one"
        who = who if enough.people else f"All {others:,}"
        text += f" {who}, with {_percent(share)} of the comparisons, may gain little."
    return text


def _difference(d: Differences) -> str:
    """The signals in words, with no more certainty than they have."""
    agree = estimated(d.agreement.agree, scale=100.0, unit="%") if d.agreement else ""
    known = f"Two users agree on a pair in {agree} of cases. " if agree else ""
    signals = [*_length_signal(d), *_neighbour_signal(d)]
    if not signals:
        return f"{known}Whether users differ systematically is unclear from this log."
    if d.systematic:
        return f"{known}Users differ systematically: {'; '.join(text for text, sign in signals if sign)}."
    text = "; ".join(text for text, _ in signals)
    sign = "A sign, but no sure one," if d.may_differ else "No sure sign"
    return f"{known}{sign} that users like different things: {text}. Other tastes are not ruled out."


def _length_signal(d: Differences) -> list[tuple[str, bool]]:
    """[(signal in words, whether it shows different tastes)]; empty without a signal."""
    taste = d.length_taste
    if taste is None:
        return []
    counts = f"{taste.longer:,} prefer the longer response and {taste.shorter:,} the shorter one"
    if d.opposed_in_length:
        return [(f"{counts}, of {taste.people:,} users", True)]
    counts += f", of {taste.people:,}; chance alone gives up to {taste.by_chance:.1f} of each"
    if taste.p < SIGNIFICANT:
        return [(f"their preference for length differs, which may be care as well as taste ({counts})", False)]
    if taste.p < _HINT:
        return [(f"their preference for length may differ, p = {taste.p:.3f} ({counts})", False)]
    return [(f"chance explains the differences in their preference for length, p = {taste.p:.2f} ({counts})", False)]


def _neighbour_signal(d: Differences) -> list[tuple[str, bool]]:
    if d.neighbours is None:
        return []
    gain = d.neighbours.gain
    shown = estimated(gain, scale=100.0, sign="+", unit=" points")
    predict = "those who agreed with a user before predict that user"
    alike = "than the best rule that is the same for all"
    if d.neighbours_help:
        text = f"{predict} better {alike} ({shown})"
    elif gain.low > 0.0:
        text = f"{predict} better {alike} ({shown}), but luck in the choice of pairs is not ruled out"
    elif gain.low == gain.high == 0.0:
        text = f"{predict} exactly as well as the best rule that is the same for all"
    elif gain.high < 0.0:
        text = f"{predict} worse {alike} ({shown})"
    else:
        text = f"whether {predict} better {alike} is unclear ({shown})"
    return [(text, d.neighbours_help)]


def _advice(level: Level, predicted: Estimate | None, people: UserCounts) -> str:
    if level == "no" and (people.people < 2 or people.enough.people):
        return "This log is enough for a uniform model only."
    if level == "no":
        return (
            "By the rule of thumb this log is enough for a uniform model only. If users differ strongly, a few "
            f"comparisons each may be enough: {_PROOF}."
        )
    start = "A personal model may gain little" if level == "thin" else "A personal model is worth training"
    if predicted is not None:
        shown = estimated(predicted, scale=100.0, sign="+", unit=" points")
        start = f"A personal model is worth training, by the {shown} that are predicted"
        if not people.enough.people:
            start += " ('users.kind: bayes' or 'cluster': no user has enough comparisons for a head of their own)"
    return f"{start}: {_PROOF}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
