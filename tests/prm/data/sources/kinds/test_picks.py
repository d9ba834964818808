"""Picks to pairs, worked by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prm.config import FeedbackConfig
from prm.data.sources import read_feedback
from prm.errors import DataError
from tests.paths import SHARED
from tests.prm.data.sources.logs import read, read_csv, refused, won

REAL = SHARED / "data" / "prism_mini" / "comparisons.jsonl"
COLUMNS = {"responses": ["first", "second", "third", "fourth"]}


def pick(chosen: Any, *responses: str, **more: Any) -> dict[str, Any]:
    shown = list(responses or ("x", "y", "z"))
    return {"user_id": "ann", "prompt": "tea?", "responses": shown, "chosen": chosen} | more


@pytest.mark.parametrize("chosen", ["y", 1, "b", "B", " b "])
def test_the_chosen_answer_beats_each_other_one_and_nothing_is_said_of_those(tmp_path: Path, chosen: Any) -> None:
    """By its text, its position from 0, or its letter."""
    found = read(tmp_path, [pick(chosen)], "picks")
    assert won(found) == [("y", "x"), ("y", "z")]
    assert {c.rejected: c.chosen_first for c in found.comparisons} == {"x": False, "z": True}
    assert found.pairs == {"kept": 2, "judged equal": 1}


def test_no_chosen_answer_enters_more_than_max_pairs(tmp_path: Path) -> None:
    found = read(tmp_path, [pick("x", *"xabcdefg")], "picks", max_pairs=3)
    assert len(found.comparisons) == 3
    assert {c.chosen for c in found.comparisons} == {"x"}
    assert found.pairs == {"kept": 3, "over max_pairs": 4, "judged equal": 21}


@pytest.mark.parametrize("word", ["tie", "Tie", "both", "neither", "equal"])
def test_a_tie_of_two_is_a_tied_pair(tmp_path: Path, word: str) -> None:
    found = read(tmp_path, [pick(word, "x", "y")], "picks")
    assert won(found) == [("x", "y", "=")]
    assert found.comparisons[0].p_chosen == 0.5


def test_ties_can_be_dropped(tmp_path: Path) -> None:
    found = read(tmp_path, [pick("tie", "x", "y"), pick("x", "x", "y")], "picks", ties="drop")
    assert won(found) == [("x", "y")]
    assert (found.rows, found.pairs) == ({"used": 1, "tied": 1}, {"kept": 1, "tied": 1})


def test_a_tie_of_three_is_refused(tmp_path: Path) -> None:
    assert "line 1: a tie of 3 " in refused(tmp_path, [pick("tie")], "picks")


def columns_of(chosen: Any, **answers: str | None) -> dict[str, Any]:
    return {"user_id": "ann", "prompt": "tea?", "chosen": chosen} | answers


@pytest.mark.parametrize("chosen", ["y", 1, "b", "second"])
def test_answers_gathered_from_columns_may_be_chosen_by_the_columns_name(tmp_path: Path, chosen: Any) -> None:
    row = columns_of(chosen, first="x", second="y", third="z", fourth="v")
    assert won(read(tmp_path, [row], "picks", columns=COLUMNS)) == [("y", "v"), ("y", "x"), ("y", "z")]


@pytest.mark.parametrize("chosen", ["z", 2, "c", "third"])
def test_an_empty_column_does_not_shift_the_others(tmp_path: Path, chosen: Any) -> None:
    row = columns_of(chosen, first="x", second=None, third="z", fourth="v")
    assert won(read(tmp_path, [row], "picks", columns=COLUMNS)) == [("z", "v"), ("z", "x")]
    table = f"user_id,prompt,first,second,third,fourth,chosen\nann,tea?,x,,z,v,{chosen}\n"
    assert won(read_csv(tmp_path, table, "picks", columns=COLUMNS)) == [("z", "v"), ("z", "x")]


@pytest.mark.parametrize("chosen", [1, "b", "second"])
def test_an_empty_column_cannot_be_chosen(tmp_path: Path, chosen: Any) -> None:
    row = columns_of(chosen, first="x", second=None, third="z")
    message = refused(tmp_path, [row, row | {"fourth": "v"}], "picks", columns=COLUMNS)
    assert message.startswith("log.jsonl, line 1: 'chosen' ")


def test_text_wins_over_letter_and_position(tmp_path: Path) -> None:
    assert won(read(tmp_path, [pick("a", "b", "a")], "picks")) == [("a", "b")]
    table = 'user_id,prompt,responses,chosen\nu,q,"[""1"", ""0""]",1\nu,p,"[""v"", ""w""]",1\n'
    assert won(read_csv(tmp_path, table, "picks")) == [("1", "0"), ("w", "v")]


def test_the_same_answer_twice_is_no_pair(tmp_path: Path) -> None:
    found = read(tmp_path, [pick("x", "x", "x", "y")], "picks")
    assert won(found) == [("x", "y")]
    assert found.pairs == {"kept": 1, "the same text twice": 1, "judged equal": 1}


BAD: list[tuple[dict[str, Any], str]] = [
    (pick("w"), "'chosen' is position 22 (from 0), but there are 3 responses"),
    (pick("word"), "'chosen' must be one of the responses, its position from 0, its letter, or 'tie', got 'word'"),
    (pick("1"), "'chosen' must be one of the responses"),
    (pick(3), "'chosen' is position 3 (from 0), but there are 3 responses"),
    (pick(-1), "'chosen' is position -1"),
    (pick(True), "'chosen' must be one of the responses"),
    (pick(1.0), "'chosen' must be one of the responses"),
    (pick(["x"]), "'chosen' must be one of the responses"),
    (pick(None), "field 'chosen' is missing"),
    (pick(0, "x"), "'responses' holds 1 response; a pick needs two or more"),
    (pick(0) | {"responses": []}, "'responses' holds 0 response"),
    (pick(0) | {"responses": "x"}, "'responses' must be a list of texts, got text"),
    (pick(0) | {"responses": ["x", 3]}, "'responses[1]' must be text, got int 3"),
    (pick(0, weight=-1), "'weight' must be greater than 0"),
    (pick(0, user_text=5), "'user_text' must be text"),
    (pick(0, time=""), "'time' is empty"),
    (pick("x" * 10**6), "'chosen' must be one of the responses"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_a_bad_pick_is_named_by_line_and_field(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    message = refused(tmp_path, [pick("x"), row], "picks")
    assert message.startswith("log.jsonl, line 2: ")
    assert said in message
    assert len(message) < 500


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_file(), reason="the data is not here")
def test_a_real_log_of_two_answers_and_a_letter() -> None:
    """PRISM-style pairs that are not in PRISM's own schema."""
    raw = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    columns: dict[str, str | list[str]] = {
        "prompt": "context",
        "responses": ["response_a", "response_b"],
        "chosen": "choice",
    }
    found = read_feedback(FeedbackConfig(path=str(REAL), source="picks", columns=columns))
    assert [(c.user_id, c.prompt, c.chosen, c.rejected) for c in found.comparisons] == [
        (r["user_id"], r["context"], r[f"response_{r['choice']}"], r[f"response_{'ab'[r['choice'] == 'a']}"])
        for r in raw
    ]
    assert found.rows == {"used": 84}
    assert Counter(c.chosen_first for c in found.comparisons) == {True: 38, False: 46}
    assert len({c.user_id for c in found.comparisons}) == 18


def test_json_in_a_cell_gives_no_key_twice(tmp_path: Path) -> None:
    header, turn = "user_id,prompt,responses,chosen\n", '""role"": ""user"", ""content"": ""hi""'
    assert read_csv(tmp_path, header + f'u,"[{{{turn}}}]","[""a"", ""b""]",a\n', "picks").rows == {"used": 1}
    with pytest.raises(DataError, match=r"line 2: .*'role'.*twice"):
        read_csv(tmp_path, header + f'u,"[{{""role"": ""x"", {turn}}}]","[""a"", ""b""]",a\n', "picks")
    (c,) = read_csv(tmp_path, header + 'u,"[{""a"": 1, ""a"": 2}]","[""a"", ""b""]",a\n', "picks").comparisons
    assert c.prompt == '[{"a": 1, "a": 2}]'  # no messages: a prompt about JSON


@pytest.mark.parametrize(
    ("responses", "chosen", "winner", "said"),
    [
        (["1", "0"], "1", "1", "read as text"),
        (["1", "0"], 1, "0", "read as a position"),
        (["0", "1"], "1", "1", "read as text"),
        (["b", "a"], "a", "a", "read as text"),
        (["tie", "x"], "tie", "tie", "read as text"),
        (["7", "x"], "7", "7", ""),
        (["x", "y"], "b", "y", ""),
    ],
)
def test_how_a_choice_is_read_that_may_be_read_in_two_ways(
    tmp_path: Path, responses: list[str], chosen: Any, winner: str, said: str
) -> None:
    row = {"user_id": "u", "prompt": "p", "responses": responses, "chosen": chosen}
    found = read(tmp_path, [row, row | {"prompt": "q"}], "picks")
    assert {c.chosen for c in found.comparisons} == {winner}
    assert len(found.notes) == bool(said)
    assert all(said in note and "2 rows, first" in note and "line 1" in note for note in found.notes)
