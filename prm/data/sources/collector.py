"""Comparisons of a log, and an account of every row and pair that was left out."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, prompt_key
from prm.data.sources.dataset_cards import Card
from prm.errors import DataError, counted, fold
from prm.io.rows import Json, Row
from prm.io.run_files import LogRecord
from prm.io.tables import plain

USED, BAD, DUPLICATE = "used", "bad", "said twice"
KEPT, TIED = "kept", "tied"
ALIKE = "differ in case, spaces, Unicode form or invisible characters only"
_MAX_BAD_ROWS = 100_000  # stop if the first so many rows are all bad


class SkippedRow(TypedDict):
    """A bad row that was left out, as in `skipped.jsonl`. `row`: its values, or its text if it could not be read."""

    user_id: NotRequired[Json]
    row_of: str
    fault: str
    row: Mapping[str, object] | str


@dataclass
class Feedback:
    """Comparisons, and how many rows and possible pairs of the log had which outcome.

    Args:
        rows, pairs: counts by outcome; they add up to all rows and all possible pairs.
        rule: how rows become comparisons, in words.
        skipped: bad rows that were left out, as in `skipped.jsonl`.
        notes: remarks on the log.
        card: for a public data set.
        read_as: how the log was recognised and its columns were read, in words; "" where the settings say so.
        without: ids of users with rows and without a comparison.
    """

    comparisons: list[Comparison]
    rows: Counter[str]
    pairs: Counter[str]
    rule: str
    skipped: list[SkippedRow]
    notes: list[str]
    card: Card | None = None
    read_as: str = ""
    without: list[str] = field(default_factory=list)

    def account(self) -> list[str]:
        """The counts in words."""
        lines = [f"{counted(sum(self.rows.values()), 'row')}: {_counts(self.rows)}", f"pairs: {self.rule}"]
        if self.pairs.keys() - {KEPT} or self.pairs[KEPT] != self.rows[USED]:
            lines.append(f"{counted(sum(self.pairs.values()), 'pair')}: {_counts(self.pairs)}")
        return [*([self.card.line] if self.card else []), *filter(None, [self.read_as]), *lines, *self.notes]

    def faults(self, most: int = 3) -> list[str]:
        """The first few bad rows, in words."""
        lines = [f"left out: {bad['row_of']}: {bad['fault']}" for bad in self.skipped[:most]]
        more = len(self.skipped) - len(lines)
        return [*lines, *([f"left out: {counted(more, 'more bad row')}"] if more else [])]

    def summary(self) -> LogRecord:
        """The counts, and the card of a public set, JSON-ready."""
        account: LogRecord = {"read_as": self.read_as} if self.read_as else {}
        account |= {"rows": dict(self.rows), "pairs": dict(self.pairs), "rule": self.rule, "notes": self.notes}
        if self.card:
            account["card"] = self.card.record()
        return account


class Collector:
    """Collects the comparisons of a log, and the outcomes of its rows and pairs.

    Args:
        rule: how rows become comparisons; may name settings in braces.
        card: for a public data set.
        optional: columns that the settings name and the log may lack.
        read_as: how the log was recognised, in words.

    Sources add remarks to `notes`, the users of rows to `users`, and count pairs without a comparison in `pairs`.
    """

    def __init__(
        self,
        config: FeedbackConfig,
        rule: str,
        card: Card | None = None,
        optional: Set[str] = frozenset(),
        read_as: str = "",
    ):
        self.card, self.optional, self.read_as = card, optional, read_as
        self.notes: list[str] = []
        gap = (
            f"{config.min_rating_difference:g} or more apart"
            if config.min_rating_difference
            else "however little apart"
        )
        self.config, self.rule = config, rule.format(max_pairs=config.max_pairs, gap=gap)
        self.pairs: Counter[str] = Counter()
        self.unread, self.users = set[str](), dict[str, None]()
        self._outcome: dict[int, str] = {}
        self._added: list[tuple[Comparison, tuple[int, ...]]] = []
        self._skipped: list[SkippedRow] = []

    def bad(self, number: int, row: Row, fault: str, user_id: object = None) -> None:
        """Record a bad row with its fault, or raise `DataError` if `on_bad_row` is `stop`."""
        if self.config.on_bad_row == "stop":
            # if the first row is bad and the fault names a setting, that is more likely at fault
            skip = number > 1 or "'data." not in fault
            hint = "; 'data.on_bad_row: skip' leaves such rows out and lists them" if skip else ""
            # callers catch the fault: without their traceback in front
            raise DataError(f"{row.origin}: {fault}{hint}{self._read_as()}") from None
        self._outcome[number] = BAD
        skipped: SkippedRow = {
            "row_of": row.origin,
            "fault": fault,
            "row": plain(row.values if row.values is not None else row.raw),
        }
        self._skipped.append(skipped if user_id is None else {"user_id": plain(user_id), **skipped})
        if number == _MAX_BAD_ROWS:
            self.stop_if_all_are_bad(number)

    def stop_if_all_are_bad(self, rows: int) -> None:
        """Raise `DataError` if all of the first `rows` rows are bad: then the settings are wrong."""
        if self._skipped and len(self._skipped) == rows:
            first = self._skipped[0]
            has = f"; the row has {', '.join(map(repr, first['row']))}" if isinstance(first["row"], dict) else ""
            columns = "" if "; the row has " in first["fault"] else has
            raise DataError(
                f"{first['row_of']}: {first['fault']}{columns}; all of the {rows:,} rows are bad: check the settings"
                + self._read_as()
            ) from None

    def _read_as(self) -> str:
        """As what the log was recognised, for an error: the account says more."""
        return f"; {re.split('[,;]', self.read_as)[0]}" if self.read_as else ""

    def left_out(self, number: int, reason: str) -> None:
        """Record why a row was left out; ignored if the row is part of a comparison."""
        self._outcome[number] = reason

    def add(self, comparison: Comparison, *numbers: int) -> None:
        """Add a comparison and the numbers of its rows."""
        self._added.append((comparison, numbers))

    def finish(self) -> Feedback:
        """The feedback. Raises `DataError` if no comparison is left."""
        seen: set[tuple[object, ...]] = set()
        kept: list[Comparison] = []
        used: set[int] = set()
        for c, numbers in self._added:
            key = (
                c.user_id,
                c.prompt,
                c.chosen,
                c.rejected,
                c.p_chosen,
                c.weight,
                c.time,
                c.chosen_first,
                c.user_text,
                c.conversation_id,
                repr(c.metadata),
            )
            outcome = DUPLICATE if key in seen else TIED if c.is_tie and self.config.ties == "drop" else KEPT
            if not self.config.anonymous:  # equal anonymous comparisons may be of two users
                seen.add(key)
            self.pairs[outcome] += 1
            if outcome == KEPT:
                kept.append(c)
                used.update(numbers)
            else:
                for number in numbers:
                    self._outcome[number] = outcome
        rows = Counter({USED: len(used)}) + Counter(reason for n, reason in self._outcome.items() if n not in used)
        notes = [*self._notes(kept), *self.notes]
        found = {c.user_id for c in kept}
        without = [user for user in self.users if user not in found]
        feedback = Feedback(kept, rows, +self.pairs, self.rule, self._skipped, notes, self.card, self.read_as, without)
        if not kept:
            needed = "needed are two responses to one prompt, one of which a user prefers"
            raise DataError("; ".join([f"{self.config.path}: yields no comparison", needed, *feedback.account()]))
        return feedback

    def _notes(self, comparisons: Sequence[Comparison]) -> list[str]:
        unread = [name or "one without a name" for name in sorted(self.unread)]
        notes = [f"columns that are not read: {', '.join(unread)}"] if unread else []
        if both := contradictions(comparisons):
            notes.append(f"pairs that one user compared both ways: {both}; both comparisons count")
        if groups := alike_ids(c.user_id for c in comparisons):
            example = " and ".join(distinguishable(groups[0][:3]))
            notes.append(f"ids that {ALIKE}: {counted(len(groups), 'group')}, first {example}; the same user?")
        return notes


def contradictions(comparisons: Iterable[Comparison]) -> int:
    """Number of pairs of responses that one user compared both ways."""
    preferences = {(c.user_id, prompt_key(c.prompt), c.chosen, c.rejected) for c in comparisons if not c.is_tie}
    return sum((user, prompt, b, a) in preferences for user, prompt, a, b in preferences) // 2


def alike_ids(users: Iterable[str]) -> list[list[str]]:
    """Groups of different ids that look alike (`prm.errors.fold`)."""
    groups: dict[str, list[str]] = defaultdict(list)
    for user in dict.fromkeys(users):
        groups[fold(user)].append(user)
    return [ids for ids in groups.values() if len(ids) > 1]


def distinguishable(users: Sequence[str]) -> list[str]:
    """The ids in quotes, with escapes if they would look the same."""
    seen = [unicodedata.normalize("NFKC", repr(user)) for user in users]
    return [ascii(user) if seen.count(shown) > 1 else repr(user) for user, shown in zip(users, seen, strict=True)]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counter.items() if n) or "none"
