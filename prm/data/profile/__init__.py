"""Describes a feedback log before training. Does not import torch."""

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from prm.data.profile.arrays import Log, encode_log, grouped
from prm.data.profile.artifacts import Artefacts, find_artefacts
from prm.data.profile.collaborative import find_neighbours
from prm.data.profile.counts import Overlap, UserCounts, count_overlap, count_people
from prm.data.profile.heterogeneity import count_votes, find_agreement, find_dissent, find_length_taste
from prm.data.profile.token_lengths import TokenLengths, measure_tokens
from prm.data.profile.verdict import Differences, ProfileVerdict, profile_verdict
from prm.data.sources.collector import DUPLICATE, Feedback, SkippedRow, alike_ids, contradictions
from prm.data.sources.dataset_cards import Card
from prm.io.rows import Json
from prm.io.tables import plain
from prm.metrics import Array, Estimate

if TYPE_CHECKING:
    from prm.data.encoding import TextEncoder

__all__ = ["Description", "describe"]

logger = logging.getLogger(__name__)

_LISTED, _MANY = 5, 100_000


@dataclass(frozen=True)
class Rate:
    """A share in [0, 1] of `comparisons`, with its 95% interval by bootstrap over users."""

    comparisons: int
    share: Estimate


@dataclass(frozen=True)
class Faults:
    """Faults of single rows.

    Args:
        bad: bad rows that were skipped; `first_bad` lists the first few.
        duplicates: repeated comparisons of the same user, of which one counts.
        contradictions: pairs that one user compared both ways.
        alike: groups of ids that look alike (`alike_ids`); `first_alike` lists the first few.
    """

    bad: int
    first_bad: tuple[SkippedRow, ...]
    duplicates: int
    contradictions: int
    alike: int
    first_alike: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Description:
    """A feedback log in numbers.

    Args:
        rows, pairs: counts of all rows and of all possible pairs, by outcome.
        account: both in words, how rows become comparisons, and remarks on the log.
        longer_won: how often the response with more words was chosen, without ties and pairs of equal length.
        first_won: how often the response shown first was chosen; `None` if unknown.
        tokens: `None` without a backbone.
        card: for a public data set.
    """

    verdict: ProfileVerdict
    rows: dict[str, int]
    pairs: dict[str, int]
    account: tuple[str, ...]
    people: UserCounts
    overlap: Overlap
    longer_won: Rate | None
    first_won: Rate | None
    differences: Differences
    tokens: TokenLengths | None
    faults: Faults
    artefacts: Artefacts
    card: Card | None

    def to_dict(self) -> dict[str, Json]:
        """All values, JSON-ready; infinite ends of intervals become null."""
        return plain(asdict(self))


def describe(feedback: Feedback, encoder: "TextEncoder | None") -> Description:
    """Describe a log, with token lengths if there is an encoder. The order of the rows does not matter."""
    if (n := len(feedback.comparisons)) > _MANY:
        logger.info("describing %s comparisons, about a minute for each million", f"{n:,}")
    log = encode_log(feedback.comparisons)
    votes = count_votes(log)
    people, overlap = count_people(log), count_overlap(log)
    differences = Differences(
        find_agreement(votes), find_length_taste(log), find_dissent(votes), find_neighbours(votes)
    )
    first = log.first.copy()
    first[log.tie] = float("nan")
    artefacts = find_artefacts(log.texts, log.chosen[~log.tie], log.rejected[~log.tie])
    return Description(
        verdict=profile_verdict(people, overlap, differences, artefacts.decided),
        rows=dict(feedback.rows),
        pairs=dict(feedback.pairs),
        account=tuple(feedback.account()),
        people=people,
        overlap=overlap,
        longer_won=_rate(log.longer_won, log),
        first_won=_rate(first, log),
        differences=differences,
        tokens=None if encoder is None else measure_tokens(feedback.comparisons, encoder),
        faults=_faults(feedback),
        artefacts=artefacts,
        card=feedback.card,
    )


def _rate(values: Array, log: Log) -> Rate | None:
    share = grouped(values, log.user)
    return None if share is None else Rate(int((values == values).sum()), share)  # NaN differs from itself


def _faults(feedback: Feedback) -> Faults:
    alike = alike_ids(c.user_id for c in feedback.comparisons)
    return Faults(
        bad=len(feedback.skipped),
        first_bad=tuple(feedback.skipped[:_LISTED]),
        duplicates=feedback.pairs[DUPLICATE],
        contradictions=contradictions(feedback.comparisons),
        alike=len(alike),
        first_alike=tuple(tuple(ids) for ids in alike[:_LISTED]),
    )
