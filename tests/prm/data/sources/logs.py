"""Small logs, and short ways to say what came of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prm.config import FeedbackConfig
from prm.data.sources import Feedback, read_feedback
from prm.errors import DataError


def read(folder: Path, rows: Sequence[Any], source: str, **settings: Any) -> Feedback:
    """What comes of the rows as `log.jsonl`; text stands for a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / "log.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    feedback = read_feedback(FeedbackConfig(path=str(path), source=source, **settings))  # type: ignore[arg-type]
    assert sum(feedback.rows.values()) == len(rows)
    return feedback


def read_csv(folder: Path, text: str, source: str, **settings: Any) -> Feedback:
    """What comes of the text as `log.csv`."""
    path = folder / "log.csv"
    path.write_text(text, encoding="utf-8")
    return read_feedback(FeedbackConfig(path=str(path), source=source, **settings))  # type: ignore[arg-type]


def refused(folder: Path, rows: Sequence[Any], source: str, **settings: Any) -> str:
    """What is said of the rows, from the name of the file on."""
    with pytest.raises(DataError) as caught:
        read(folder, rows, source, **settings)
    return str(caught.value).removeprefix(f"{folder}/")


def won(feedback: Feedback) -> list[tuple[str, ...]]:
    """(chosen, rejected) of all comparisons, sorted; a tie as (first in the alphabet, second, "=")."""
    pairs = []
    for c in feedback.comparisons:
        pairs.append((*sorted([c.chosen, c.rejected]), "=") if c.is_tie else (c.chosen, c.rejected))
    return sorted(pairs)
