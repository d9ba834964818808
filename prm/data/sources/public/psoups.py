"""P-SOUPS: six simulated users, each with one preference prompt, labelled by GPT-4 (Jang et al., 2023)."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison
from prm.data.sources.collector import DUPLICATE, Collector, Feedback
from prm.data.sources.dataset_cards import Card, compare
from prm.data.sources.fields import text_or_blank
from prm.data.sources.pairing import SAME
from prm.data.splits import TEST, TRAIN, never_trained_on, shared_prompts
from prm.errors import DataError
from prm.io.lines import read_whole
from prm.io.rows import Row
from prm.io.tables import kind, parse_json, read_table

RULE = "each row is one: the first completion over the second, for the person of the file"
LONGEST = 4_800  # characters of prompt and response together
EMPTY, LONG = "an empty question or answer", f"more than {LONGEST} characters"
# each user's preference prompt; it is part of the data set's prompts and would reveal the user
PROMPTS = {
    "P1A": "Generate a response that can be easily understood by an elementary school student.",
    "P1B": "Generate a response that only a PhD Student in that specific field could understand.",
    "P2A": "Generate a response that is concise and to the point without being verbose.",
    "P2B": "Generate a response that is very informative without missing any background information.",
    "P3A": "Generate a response that is friendly, witty, funny, and humorous, like a close friend.",
    "P3B": "Generate a response in an unfriendly manner.",
}
CARD = Card(
    name="P-SOUPS",
    licence="not stated; rollouts of Tulu-7B labelled by GPT-4, whose terms apply",
    citation="Jang et al., Personalized Soups, arXiv:2310.11564, 2023",
    about="six simulated people on answers to instructions",
    counts={"P1A": 48_300, "P1B": 48_825, "P2A": 47_350, "P2B": 49_220, "P3A": 49_155, "P3B": 48_565},
)
# Table 7: comparisons left without equal responses and repeats
TABLE_7 = {"P1A": 8_959, "P1B": 9_069, "P2A": 8_239, "P2B": 8_626, "P3A": 9_356, "P3B": 9_222}
_TEST_SHARE, _SEED = 0.1, 123
_COLUMNS = ("user_input", "completion_a", "completion_b")


@dataclass(frozen=True)
class _Labelled:
    """A comparison of the archive; its prompt still contains the preference prompt."""

    number: int
    origin: str
    user: str
    prompt: str
    chosen: str
    rejected: str

    def comparison(self, prompt: str, metadata: dict[str, str]) -> Comparison:
        """The record, with this prompt instead."""
        return Comparison(self.user, prompt, self.chosen, self.rejected, metadata=metadata, origin=self.origin)


def read(config: FeedbackConfig) -> Feedback:
    """Read the unzipped archive with `rm_training/P1A.json` to `P3B.json`: each a list, or JSON Lines, of user_input,
    completion_a (the preferred one) and completion_b. There is no hub id.

    Metadata `split` holds the paper's split, which is by comparison, so that prompts are in both parts; the notes count
    them. Metadata: `split`, `axis` (`P1`, `P2`, `P3`). Raises `DataError`.
    """
    collector = Collector(config, RULE, CARD)
    rows: list[_Labelled] = []
    read_rows: Counter[str] = Counter()
    for number, (user, row) in enumerate(_rows(Path(config.path).expanduser()), start=1):
        read_rows[user] += 1
        try:
            rows += _parse(collector, number, user, row)
        except DataError as error:
            collector.bad(number, row, str(error), user)
    unique = _without_repeats(collector, rows)
    test = paper_test_part(len(unique)) if unique else set()
    for i, labelled in enumerate(unique):
        prompt = labelled.prompt.replace(PROMPTS[labelled.user], "").strip()
        if reason := _reason(prompt, labelled):
            collector.left_out(labelled.number, reason)
        else:
            metadata = {"split": TEST if i in test else TRAIN, "axis": labelled.user[:2]}
            collector.add(labelled.comparison(prompt, metadata), labelled.number)
    collector.notes += compare(
        CARD, read_rows, "the paper's Table 7", TABLE_7, Counter(labelled.user for labelled in unique)
    )
    feedback = collector.finish()
    feedback.notes += _leaks(feedback)
    return feedback


def paper_test_part(n: int) -> set[int]:
    """Positions of the paper's test part among n comparisons: shuffle and split of `datasets`, both with seed 123.

    With one seed both are the same permutation; the test part is the first ceil(0.1 n) positions of the split.
    """
    order = np.random.default_rng(_SEED).permutation(n)
    return {int(i) for i in order[order[: math.ceil(_TEST_SHARE * n)]]}


def _rows(folder: Path) -> Iterator[tuple[str, Row]]:
    inner = folder / "rm_training"
    for user in PROMPTS:
        file = (inner if inner.is_dir() else folder) / f"{user}.json"
        yield from ((user, row) for row in _rows_of(file))


def _rows_of(file: Path) -> Iterator[Row]:
    """The objects of a JSON list, or of JSON Lines."""
    content = read_whole(file)
    is_list = content.lstrip()[:1] == b"["
    try:
        values = parse_json(content.decode()) if is_list else []
    except ValueError as error:  # invalid UTF-8 or JSON
        raise DataError(f"{file}: not valid JSON: {error}") from None
    if not is_list:
        yield from read_table(str(file))
    for number, value in enumerate(values if isinstance(values, list) else [], start=1):
        origin = f"{file}, entry {number}"
        if isinstance(value, dict):
            yield Row(origin, value)
        else:
            yield Row(origin, None, f"expected a JSON object, got {kind(value)}", raw=str(value))


def _parse(collector: Collector, number: int, user: str, row: Row) -> list[_Labelled]:
    """The row's comparison; none if both responses are the same text. Raises `DataError`."""
    if row.values is None:
        raise DataError(row.fault)
    prompt, chosen, rejected = (text_or_blank(name, row.values.get(name)) for name in _COLUMNS)
    if chosen == rejected:
        collector.left_out(number, SAME)
        return []
    return [_Labelled(number, row.origin, user, prompt, chosen, rejected)]


def _without_repeats(collector: Collector, rows: list[_Labelled]) -> list[_Labelled]:
    """The first of each user's equal comparisons: five in six of the archive's rows are repeats."""
    seen: set[tuple[str, ...]] = set()
    unique = []
    for row in rows:
        key = (row.user, row.prompt, row.chosen, row.rejected)
        if key in seen:
            collector.left_out(row.number, DUPLICATE)
        else:
            seen.add(key)
            unique.append(row)
    return unique


def _reason(prompt: str, labelled: _Labelled) -> str:
    """Why a row is left out, or ""."""
    responses = (labelled.chosen, labelled.rejected)
    if not all(text.strip() for text in (prompt, *responses)):
        return EMPTY
    return LONG if len(prompt) + max(map(len, responses)) > LONGEST else ""


def _leaks(feedback: Feedback) -> list[str]:
    train, test = ([c for c in feedback.comparisons if never_trained_on(c) is held_out] for held_out in (False, True))
    both, n_test = shared_prompts(train, test)
    if not both:
        return []
    leak = f"{both} of the {n_test} prompts of its test part are also in training"
    return [f"warning: the paper's split is by comparison: {leak}; 'data.holdout_by: prompt' separates them"]
