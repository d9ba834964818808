"""What became of a log: its comparisons, and an account of every row that is not among them."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, prompt_key
from prm.data.sources.dataset_cards import Card
from prm.errors import DataError, fold
from prm.io.tables import Row, plain

USED, BAD, DUPLICATE = "used", "bad", "said twice"
KEPT, TIED = "kept", "tied"
ALIKE = "differ in case, spaces, Unicode form or invisible characters only"
_ENOUGH = 100_000  # rows, all of them bad, after which no good one is expected


@dataclass
class Feedback:
    """Comparisons, and what became of every row of the log and of every pair that its rows could form.

    Both counts add up: `rows` to the rows of the log, `pairs` to the pairs.

    Args:
        rule: how rows become comparisons, in words.
        skipped: bad rows that were left out, as `skipped.jsonl` lists them.
        notes: what a reader of the log should know.
        card: what the data are, where they are a public set.
    """

    comparisons: list[Comparison]
    rows: Counter[str]
    pairs: Counter[str]
    rule: str
    skipped: list[dict[str, Any]]
    notes: list[str]
    card: Card | None = None

    def account(self) -> list[str]:
        """The counts in words."""
        lines = [f"{sum(self.rows.values())} rows: {_counts(self.rows)}", f"pairs: {self.rule}"]
        if self.pairs.keys() - {KEPT} or self.pairs[KEPT] != self.rows[USED]:
            lines.append(f"{sum(self.pairs.values())} pairs: {_counts(self.pairs)}")
        return [*([self.card.line] if self.card else []), *lines, *self.notes]

    def faults(self, most: int = 3) -> list[str]:
        """The first few bad rows that were left out, in words."""
        lines = [f"left out: {bad['row_of']}: {bad['fault']}" for bad in self.skipped[:most]]
        more = len(self.skipped) - len(lines)
        return [*lines, *([f"left out: {more:,} more bad rows"] if more else [])]

    def summary(self) -> dict[str, Any]:
        """The counts, and the card of a public set, JSON-ready."""
        card = {"card": asdict(self.card)} if self.card else {}
        return {"rows": dict(self.rows), "pairs": dict(self.pairs), "rule": self.rule, "notes": self.notes, **card}


class Collector:
    """Gathers what the rows of a log say, and keeps account of those that say nothing.

    Args:
        rule: how rows become comparisons; may name settings in braces.
        card: what the data are, where they are a public set.
        optional: columns that the settings name and the log may lack.

    A source adds what a reader should know to `notes`, and pairs of which no comparison comes to `pairs`.
    """

    def __init__(self, config: FeedbackConfig, rule: str, card: Card | None = None, optional: Set[str] = frozenset()):
        self.card, self.optional = card, optional
        self.notes: list[str] = []
        gap = (
            f"{config.min_rating_difference:g} or more apart"
            if config.min_rating_difference
            else "however little apart"
        )
        self.config, self.rule = config, rule.format(max_pairs=config.max_pairs, gap=gap)
        self.pairs: Counter[str] = Counter()
        self.unread: set[str] = set()
        self._outcome: dict[int, str] = {}
        self._found: list[tuple[Comparison, tuple[int, ...]]] = []
        self._skipped: list[dict[str, Any]] = []

    def bad(self, number: int, row: Row, fault: str, user_id: str | None = None) -> None:
        """A row that makes no sense: kept with its fault, or the end, by `on_bad_row`. Raises `DataError`."""
        if self.config.on_bad_row == "stop":
            # where the very first row is bad, it is more likely the settings that are
            hint = "; 'data.on_bad_row: skip' leaves such rows out and lists them" if number > 1 else ""
            raise DataError(f"{row.origin}: {fault}{hint}")
        self._outcome[number] = BAD
        content = row.values if row.values is not None else row.raw
        who = {} if user_id is None else {"user_id": plain(user_id)}
        self._skipped.append(who | {"row_of": row.origin, "fault": fault, "row": plain(content)})
        if number == _ENOUGH:
            self.stop_if_all_are_bad(number)

    def stop_if_all_are_bad(self, rows: int) -> None:
        """Raise `DataError` where none of so many rows makes sense: it is the settings that do not, then."""
        if self._skipped and len(self._skipped) == rows:
            first = self._skipped[0]
            has = f"; the row has {', '.join(map(repr, first['row']))}" if isinstance(first["row"], dict) else ""
            columns = "" if "; the row has " in first["fault"] else has
            raise DataError(f"{first['row_of']}: {first['fault']}{columns}; none of the {rows:,} rows makes sense")

    def left_out(self, number: int, reason: str) -> None:
        """A row that says nothing that can be learnt from, unless a comparison comes of it after all."""
        self._outcome[number] = reason

    def add(self, comparison: Comparison, *numbers: int) -> None:
        """A comparison, and the rows that it comes from."""
        self._found.append((comparison, numbers))

    def finish(self) -> Feedback:
        """The feedback. Raises `DataError` where nothing is left of it."""
        seen: set[tuple[Any, ...]] = set()
        kept: list[Comparison] = []
        used: set[int] = set()
        for c, numbers in self._found:
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
            fate = DUPLICATE if key in seen else TIED if c.is_tie and self.config.ties == "drop" else KEPT
            if not self.config.anonymous:  # nameless judgements that are equal may be two people's
                seen.add(key)
            self.pairs[fate] += 1
            if fate == KEPT:
                kept.append(c)
                used.update(numbers)
            else:
                for number in numbers:
                    self._outcome[number] = fate
        rows = Counter({USED: len(used)}) + Counter(reason for n, reason in self._outcome.items() if n not in used)
        notes = [*self._notes(kept), *self.notes]
        feedback = Feedback(kept, rows, +self.pairs, self.rule, self._skipped, notes, self.card)
        if not kept:
            raise DataError("; ".join([f"{self.config.path}: no comparison comes of it", *feedback.account()]))
        return feedback

    def _notes(self, comparisons: Sequence[Comparison]) -> list[str]:
        notes = [f"columns that are not read: {', '.join(sorted(self.unread))}"] if self.unread else []
        if both := contradictions(comparisons):
            notes.append(f"pairs that one person judged both ways: {both}; both judgements count")
        if groups := alike_ids(c.user_id for c in comparisons):
            example = " and ".join(distinguishable(groups[0][:3]))
            notes.append(f"ids that {ALIKE}: {len(groups)} groups, first {example}; one person?")
        return notes


def contradictions(comparisons: Iterable[Comparison]) -> int:
    """Pairs of answers that one person judged both ways."""
    said = {(c.user_id, prompt_key(c.prompt), c.chosen, c.rejected) for c in comparisons if not c.is_tie}
    return sum((user, prompt, b, a) in said for user, prompt, a, b in said) // 2


def alike_ids(users: Iterable[str]) -> list[list[str]]:
    """Groups of ids that are different texts and look alike (`prm.errors.fold`)."""
    groups: dict[str, list[str]] = defaultdict(list)
    for user in dict.fromkeys(users):
        groups[fold(user)].append(user)
    return [ids for ids in groups.values() if len(ids) > 1]


def distinguishable(users: Sequence[str]) -> list[str]:
    """The ids in quotes, with escapes where they would look the same."""
    seen = [unicodedata.normalize("NFKC", repr(user)) for user in users]
    return [ascii(user) if seen.count(shown) > 1 else repr(user) for user, shown in zip(users, seen, strict=True)]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counter.items() if n) or "none"
