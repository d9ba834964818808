"""P-SOUPS: an archive in its schema."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from prm.config import FeedbackConfig
from prm.data.sources import Feedback, read_feedback
from prm.data.sources.public import psoups
from prm.data.sources.public.psoups import CARD, PROMPTS, TABLE_7, paper_test_part
from prm.errors import DataError


def row(user: str, question: str = "Why?", a: Any = "Because.", b: Any = "No.") -> dict[str, Any]:
    return {"user_input": f"{question} {PROMPTS[user]}", "completion_a": a, "completion_b": b}


def read(folder: Path, rows: Mapping[str, list[Any]], lines: bool = False, **settings: Any) -> Feedback:
    (folder / "rm_training").mkdir(exist_ok=True)
    for user in PROMPTS:
        own = rows.get(user, [row(user, f"What of {user}?")])
        text = "\n".join(map(json.dumps, own)) if lines else json.dumps(own)
        (folder / "rm_training" / f"{user}.json").write_text(text)
    return read_feedback(FeedbackConfig(path=str(folder), source="psoups", **settings))


def test_six_people_whose_questions_do_not_give_them_away(tmp_path: Path) -> None:
    found = read(tmp_path, {})
    assert [(c.user_id, c.prompt, c.chosen, c.rejected) for c in found.comparisons] == [
        (user, f"What of {user}?", "Because.", "No.") for user in ("P1A", "P1B", "P2A", "P2B", "P3A", "P3B")
    ]
    assert [c.metadata["axis"] for c in found.comparisons] == ["P1", "P1", "P2", "P2", "P3", "P3"]
    assert found.rows == {"used": 6}


def test_a_list_and_lines_and_the_inner_folder_are_read_alike(tmp_path: Path) -> None:
    rows = {"P1A": [row("P1A", f"{i}?") for i in range(3)]}
    comparisons = read(tmp_path, rows).comparisons
    assert read(tmp_path, rows, lines=True).comparisons == comparisons
    inner = FeedbackConfig(path=str(tmp_path / "rm_training"), source="psoups")
    assert read_feedback(inner).comparisons == comparisons


def test_repeats_and_equal_answers_are_dropped_before_the_split(tmp_path: Path) -> None:
    """Not the same answers the other way round, and not another person's."""
    own = [row("P1A"), row("P1A"), row("P1A", a="Same.", b="Same."), row("P1A", a="No.", b="Because."), row("P1A")]
    found = read(tmp_path, {"P1A": own, "P1B": [row("P1B")]})
    assert found.rows == {"used": 7, "said twice": 2, "the same text twice": 1}
    assert sum(c.user_id == "P1A" for c in found.comparisons) == 2


def test_empty_and_long_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    """The preference prompt does not count towards the 4800 characters of question and answer."""
    own = [
        row("P1A", a="x" * 4796, b="y"),
        row("P1A", a="x" * 4797, b="y"),
        row("P1A", a="y", b="x" * 4797),
        row("P1A", "", "a", "b"),
        row("P1A", b=" "),
    ]
    found = read(tmp_path, {"P1A": own})
    assert found.rows == {"used": 6, "more than 4800 characters": 2, "an empty question or answer": 2}


@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 37, 500])
def test_the_test_part_is_what_datasets_would_draw(n: int) -> None:
    if n == 1:  # datasets refuses to make a part of nothing
        assert paper_test_part(1) == {0}
        return
    both = Dataset.from_dict({"i": list(range(n))}).shuffle(seed=123).train_test_split(0.1, seed=123)
    assert paper_test_part(n) == set(both["test"]["i"])


def test_the_papers_split_leaks_and_says_so(tmp_path: Path) -> None:
    """Six people, five questions each ten times answered: 300 comparisons, 30 in the test part."""
    rows = {u: [row(u, f"Why {i % 5}?", f"a{i}", f"b{i}") for i in range(50)] for u in PROMPTS}
    found = read(tmp_path, rows)
    test = [c for c in found.comparisons if c.metadata["split"] == "test"]
    assert [i for i, c in enumerate(found.comparisons) if c in test] == sorted(paper_test_part(300))
    asked = {c.prompt for c in test}
    assert found.notes[-1].startswith("warning: the paper's split ")
    assert f"{len(asked)} of the {len(asked)} prompts" in found.notes[-1]
    disjoint = read(tmp_path, {})
    assert not any("warning" in note for note in disjoint.notes)


def test_counts_are_compared_where_all_of_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(CARD, counts=dict.fromkeys(PROMPTS, 1) | {"P1A": 3})
    monkeypatch.setattr(psoups, "CARD", small)
    monkeypatch.setattr(psoups, "TABLE_7", dict.fromkeys(PROMPTS, 1) | {"P1A": 2})
    own = [row("P1A"), row("P1A"), row("P1A", "How?")]
    found = read(tmp_path, {"P1A": own})
    assert found.notes[0] == "the complete data set: its counts are those of the paper's Table 7"
    wrong = read(tmp_path, {"P1A": [row("P1A")] * 3})
    assert wrong.notes[0].startswith("warning: ")
    assert wrong.notes[0].endswith("P1A 1, there 2")
    assert not [note for note in read(tmp_path, {}).notes if "original" in note]


def test_the_papers_counts_are_its_total() -> None:
    assert sum(TABLE_7.values()) == 53_471


BAD: list[tuple[Any, str]] = [
    (row("P2A", b=["No."]), "'completion_b' must be text, got a list"),  # what a peer rendered as text
    ({"user_input": "x", "completion_a": "y"}, "'completion_b' must be text, got null"),
    (row("P2A", a="\ud800"), "'completion_a' holds a lone surrogate"),
    ("text", "expected a JSON object, got text"),
]


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, bad: Any, said: str) -> None:
    rows = {"P2A": [row("P2A"), bad]}
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows)
    assert str(caught.value).startswith(f"{tmp_path}/rm_training/P2A.json, entry 2: {said}")
    found = read(tmp_path, rows, on_bad_row="skip")
    assert found.rows == {"used": 6, "bad": 1}
    assert found.skipped[0]["user_id"] == "P2A"


def test_a_broken_or_missing_file_is_named(tmp_path: Path) -> None:
    read(tmp_path, {})
    file = tmp_path / "rm_training" / "P3A.json"
    file.write_text("[{")
    with pytest.raises(DataError, match=r"P3A\.json.*JSON"):
        read_feedback(FeedbackConfig(path=str(tmp_path), source="psoups"))
    file.unlink()
    with pytest.raises(DataError, match=r"P3A\.json"):
        read_feedback(FeedbackConfig(path=str(tmp_path), source="psoups"))
