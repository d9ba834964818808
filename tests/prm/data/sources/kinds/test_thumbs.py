"""Thumbs to pairs, worked by hand."""

from pathlib import Path
from typing import Any

import pytest

from tests.prm.data.sources.logs import read, read_csv, refused, won


def thumb(response: str, label: Any, user: str = "ann") -> dict[str, Any]:
    return {"user_id": user, "prompt": "tea?", "response": response, "label": label}


def test_ups_meet_downs_of_the_same_person_and_prompt(tmp_path: Path) -> None:
    """Two ups and two downs are four pairs; two pairs of like thumbs say nothing; Bob's ups meet no down."""
    rows = [thumb("a", True), thumb("b", True), thumb("c", False), thumb("d", False)]
    found = read(tmp_path, [*rows, thumb("c", True, "bob"), thumb("d", True, "bob")], "thumbs")
    assert won(found) == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
    assert found.rows == {"used": 4, "in no pair": 2}
    assert found.pairs == {"kept": 4, "judged equal": 3}


WORDS = [
    (1, 0),
    (1, -1),
    ("up", "down"),
    ("Yes", "NO"),
    ("+1", "-1"),
    ("like", "dislike"),
    ("true", "false"),
    (1.0, 0.0),
    ("👍🏽", "👎"),
]


@pytest.mark.parametrize(("up", "down"), WORDS)
def test_labels_are_read_as_logs_write_them(tmp_path: Path, up: Any, down: Any) -> None:
    assert won(read(tmp_path, [thumb("a", down), thumb("b", up)], "thumbs")) == [("b", "a")]
    table = f"user_id,prompt,response,label\nu,q,a,{down}\nu,q,b,{up}\n"
    assert won(read_csv(tmp_path, table, "thumbs")) == [("b", "a")]


@pytest.mark.parametrize("label", [2, 1.5, "maybe", "x" * 10**6, [True], {}])
def test_another_label_is_refused_and_shown_in_short(tmp_path: Path, label: Any) -> None:
    message = refused(tmp_path, [thumb("a", label)], "thumbs")
    assert message.startswith("log.jsonl, line 1: 'label' must be true or false (or up/down, 1/0, 1/-1), got ")
    assert len(message) < 400


def test_a_thumb_that_was_changed_counts_as_it_ended(tmp_path: Path) -> None:
    found = read(tmp_path, [thumb("a", True), thumb("b", True), thumb("a", False)], "thumbs")
    assert won(found) == [("b", "a")]
    assert found.rows == {"used": 2, "judged again later": 1}


def test_trl_unpaired_preferences_are_thumbs(tmp_path: Path) -> None:
    """Conversational: messages in prompt and completion; the log names nobody."""
    prompt = [{"role": "user", "content": "sky?"}]
    rows = [
        {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}], "label": label}
        for answer, label in (("blue", True), ("green", False))
    ]
    found = read(tmp_path, rows, "thumbs", anonymous=True)
    assert won(found) == [("blue", "green")]
    assert found.comparisons[0].user_id == "anonymous"
