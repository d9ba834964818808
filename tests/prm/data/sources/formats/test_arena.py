"""Chatbot Arena's releases, its Kaggle competition and MT-bench: ten rows each in the published schema, by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prm.config import FeedbackConfig
from prm.data.comparison import Message
from prm.data.sources import read_feedback
from prm.errors import DataError
from tests.prm.data.sources.formats.logs import said, turns
from tests.prm.data.sources.logs import read, refused

WINNERS = ["model_a", "model_b", "tie", "tie (bothbad)"]


def battle(number: int, winner: str, judge: str, a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of lmsys/chatbot_arena_conversations."""
    return {
        "question_id": f"q{number}", "model_a": "vicuna", "model_b": "koala", "winner": winner, "judge": judge,
        "conversation_a": a, "conversation_b": b, "turn": len(a) // 2, "anony": True, "language": "English",
        "tstamp": 1682351591.5 + number, "openai_moderation": {"flagged": False}, "toxic_chat_tag": {},
    }  # fmt: skip


ARENA = [
    *(
        battle(i, w, f"arena_user_{i % 2}", turns("tea?", f"a{i}"), turns("tea?", f"b{i}"))
        for i, w in enumerate(WINNERS)
    ),
    battle(4, "model_b", "arena_user_9", turns("hi", "hello", "tea?", "yes"), turns("hi", "hello", "tea?", "no")),
    battle(5, "model_a", "arena_user_9", turns("hi", "hey", "tea?", "yes"), turns("hi", "hello", "tea?", "no")),
    battle(6, "tie", "arena_user_9", turns("hi", "hey", "tea?", "yes"), turns("hi", "hello", "tea?", "yes")),
    battle(7, "model_a", "arena_user_9", turns("x", "same"), turns("x", "same")),
    battle(8, "model_b", "arena_user_8", turns("x", "p"), turns("x", "q")),
    battle(9, "model_a", "arena_user_8", turns("y", "p"), turns("y", "q")),
]
ARENA_SAID = [
    ("arena_user_0", "tea?", "a0", "b0"),
    ("arena_user_1", "tea?", "b1", "a1"),
    ("=arena_user_0", "tea?", "a2", "b2"),
    ("=arena_user_1", "tea?", "a3", "b3"),
    ("arena_user_9", [("user", "hi"), ("assistant", "hello"), ("user", "tea?")], "no", "yes"),
    ("arena_user_9", "hi", "hey\n\nUser: tea?\n\nAssistant: yes", "hello\n\nUser: tea?\n\nAssistant: no"),
    ("=arena_user_9", "hi", "hello\n\nUser: tea?\n\nAssistant: yes", "hey\n\nUser: tea?\n\nAssistant: yes"),
    ("arena_user_8", "x", "q", "p"),
    ("arena_user_8", "y", "p", "q"),
]


def test_chatbot_arena_by_hand(tmp_path: Path) -> None:
    found = read(tmp_path, ARENA, "auto")
    assert said(found) == ARENA_SAID
    assert found.rows == {"used": 9, "in no pair": 1}
    assert found.pairs == {"kept": 9, "the same text twice": 1}
    assert [c.conversation_id for c in found.comparisons] == [f"q{i}" for i in range(10) if i != 7]
    assert found.comparisons[0].time == 1682351591.5
    assert [c.chosen_first for c in found.comparisons if not c.is_tie] == [True, False, False, True, False, True]
    assert found.read_as.startswith("read as 'arena'")
    assert all(part in found.read_as for part in ("user_id from judge", "'tie (bothbad)' is a tie", "winner"))
    assert found.account()[0] == found.read_as
    assert found.summary()["read_as"] == found.read_as
    assert sum("2 rows, first" in note and "line 6" in note for note in found.notes) == 1
    assert found.comparisons == read(tmp_path, ARENA, "arena").comparisons


def test_rows_after_those_by_which_it_was_recognised_are_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prm.data.sources.recognition._LOOKED_AT", 3)
    assert said(read(tmp_path, ARENA, "auto")) == ARENA_SAID


def test_parquet_and_conversations_as_json_text_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    rows = [{name: value for name, value in row.items() if name != "toxic_chat_tag"} for row in ARENA]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert said(read_feedback(FeedbackConfig(path=str(path)))) == ARENA_SAID
    text = [row | {name: json.dumps(row[name]) for name in ("conversation_a", "conversation_b")} for row in ARENA]
    assert said(read(tmp_path, text, "auto")) == ARENA_SAID


def release_140k(number: int, winner: str, a: str, b: str) -> dict[str, Any]:
    """A row of lmarena-ai/arena-human-preference-140k: contents in parts, no judge."""

    def parts(text: str) -> list[dict[str, Any]]:
        return [{"type": "text", "text": text, "image": None, "mimeType": None}]

    sides = {
        f"conversation_{side}": [
            {"role": role, "content": parts(text)} for role, text in (("user", "q"), ("assistant", x))
        ]
        for side, x in (("a", a), ("b", b))
    }
    return {
        "id": f"i{number}", "model_a": "x", "model_b": "y", "winner": winner,
        "evaluation_session_id": f"s{number // 2}", "evaluation_order": number % 2 + 1, **sides,
        "full_conversation": [], "conv_metadata": {}, "category_tag": {},
        "language": "en", "is_code": False, "timestamp": f"2025-04-2{number}T10:00:00",
    }  # fmt: skip


def test_the_release_of_140k_by_hand(tmp_path: Path) -> None:
    winners = ["model_a", "model_b", "tie", "both_bad"]
    rows = [release_140k(i, winners[i % 4], f"a{i}", f"b{i}") for i in range(10)]
    message = refused(tmp_path, rows, "auto")
    assert "line 1: field 'user_id' is missing" in message
    assert all(part in message for part in ("'data.columns', as in {user_id: COLUMN}", "data.anonymous: true"))
    found = read(tmp_path, rows, "auto", anonymous=True)
    a_wins, b_wins = (
        [("anonymous", "q", f"{x}{i}", f"{y}{i}") for i in n]
        for x, y, n in (("a", "b", (0, 4, 8)), ("b", "a", (1, 5, 9)))
    )
    ties = [("=anonymous", "q", f"a{i}", f"b{i}") for i in (2, 3, 6, 7)]
    assert sorted(said(found)) == sorted([*a_wins, *b_wins, *ties])
    assert [c.conversation_id for c in found.comparisons] == [f"s{i // 2}" for i in range(10)]
    assert found.comparisons[3].time == "2025-04-23T10:00:00"


def test_the_release_of_100k_has_a_judge_under_another_name(tmp_path: Path) -> None:
    rows = [{("judge_hash" if k == "judge" else k): v for k, v in row.items()} for row in ARENA]
    assert said(read(tmp_path, rows, "auto")) == ARENA_SAID


KAGGLE_NAMES = ["id", "model_a", "model_b", "prompt", "response_a", "response_b"]
ONE_HOT = ["winner_model_a", "winner_model_b", "winner_tie"]


def kaggle(folder: Path, rows: list[tuple[list[str], list[str | None], list[str | None], str]]) -> str:
    """`train.csv` of the competition, which arena-human-preference-55k has too: lists as JSON text, one-hot winners."""
    path = folder / "train.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*KAGGLE_NAMES, *ONE_HOT])
        for i, (prompt, a, b, winner) in enumerate(rows):
            writer.writerow([i, "x", "y", *map(json.dumps, (prompt, a, b)), *winner])
    return str(path)


def test_the_kaggle_competition_by_hand(tmp_path: Path) -> None:
    rows: list[Any] = [([f"q{i}"], [f"a{i}"], [f"b{i}"], ("100", "010", "001")[i % 3]) for i in range(8)]
    rows += [
        (["hi", "tea?"], ["hello", "yes"], ["hello", "no"], "010"),
        (["hi", "tea?"], ["hey", "yes"], ["hello", "no"], "100"),
    ]
    path = kaggle(tmp_path, rows)
    found = read_feedback(FeedbackConfig(path=path, anonymous=True))
    expected: list[Any] = [
        ("anonymous", "q0", "a0", "b0"),
        ("anonymous", "q1", "b1", "a1"),
        ("=anonymous", "q2", "a2", "b2"),
    ]
    expected += [("anonymous", "q3", "a3", "b3"), ("anonymous", "q4", "b4", "a4"), ("=anonymous", "q5", "a5", "b5")]
    expected += [("anonymous", "q6", "a6", "b6"), ("anonymous", "q7", "b7", "a7")]
    expected += [("anonymous", [("user", "hi"), ("assistant", "hello"), ("user", "tea?")], "no", "yes")]
    expected += [("anonymous", "hi", "hey\n\nUser: tea?\n\nAssistant: yes", "hello\n\nUser: tea?\n\nAssistant: no")]
    assert said(found) == expected
    assert found.rows == {"used": 10}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ((["q"], ["a"], ["b"], "110"), "one of 'winner_model_a', 'winner_model_b', 'winner_tie' must be 1, got "),
        ((["q"], ["a"], ["b"], "000"), "one of 'winner_model_a', 'winner_model_b', 'winner_tie' must be 1, got none"),
        ((["q"], ["a"], ["b"], "2x0"), "'winner_model_a' must be true or false, got '2'"),
        ((["q"], ["a"], ["b"], ["", "1", "0"]), "field 'winner_model_a' is missing: it is empty"),
        ((["q"], ["a"], [None], "100"), "'response_b[1].content' must be text, got null"),
        ((["q", "r"], ["a"], ["b"], "100"), "'response_a' holds 1 answers for 2 messages in 'prompt'"),
        (([], [], [], "100"), "field 'prompt' is missing: it is empty"),
    ],
)
def test_a_bad_row_of_the_competition_is_named(tmp_path: Path, row: Any, fault: str) -> None:
    good: Any = (["q"], ["a"], ["b"], "100")
    path = kaggle(tmp_path, [good, row])
    with pytest.raises(DataError) as caught:
        read_feedback(FeedbackConfig(path=path, anonymous=True))
    assert str(caught.value).startswith(f"{path}, line 3: {fault}")
    found = read_feedback(FeedbackConfig(path=path, anonymous=True, on_bad_row="skip"))
    assert found.rows == {"used": 1, "bad": 1}
    assert found.skipped[0]["fault"].startswith(fault)


def judgement(question: int, judge: str, turn: int, winner: str) -> dict[str, Any]:
    """A row of lmsys/mt_bench_human_judgments: both turns are there, whichever was judged."""
    a, b = turns("one", "a1", "two", "a2"), turns("one", "b1", "two", "b2")
    return {
        "question_id": question, "model_a": "gpt-4", "model_b": "claude-v1", "winner": winner, "judge": judge,
        "conversation_a": a, "conversation_b": b, "turn": turn,
    }  # fmt: skip


def test_mt_bench_judges_the_turn_that_the_row_says(tmp_path: Path) -> None:
    rows = [judgement(81 + i // 4, f"expert_{i % 2}", 1 + i // 2 % 2, WINNERS[i % 3]) for i in range(10)]
    found = read(tmp_path, rows, "auto")
    a = ["a1", "a1\n\nUser: two\n\nAssistant: a2"]
    b = ["b1", "b1\n\nUser: two\n\nAssistant: b2"]
    expected = []
    for i in range(10):
        turn, winner = (0, 0, 1, 1, 0, 0, 1, 1, 0, 0)[i], (0, 1, 2, 0, 1, 2, 0, 1, 2, 0)[i]
        pair = (b[turn], a[turn]) if winner == 1 else (a[turn], b[turn])
        expected.append((f"{'=' if winner == 2 else ''}expert_{i % 2}", "one", *pair))
    assert said(found) == expected
    assert [c.conversation_id for c in found.comparisons] == ["81"] * 4 + ["82"] * 4 + ["83"] * 2


GOOD = ARENA[0]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"winner": "model_c"}, "'chosen' (column 'winner') is 'model_c', which is not known"),
    ({"winner": None}, "field 'chosen' (column 'winner') is missing: it is empty"),
    ({"winner": ""}, "'chosen' (column 'winner') is ''"),
    ({"judge": None}, "field 'user_id' (column 'judge') is missing: it is empty"),
    ({"turn": 2}, "'turn' must be a number from 1 to 1, the turns of 'conversation_a', got 2"),
    ({"turn": "first"}, "'turn' must be a number from 1 to 1"),
    ({"conversation_a": []}, "'conversation_a' is an empty list"),
    ({"conversation_b": None}, "'conversation_b' must be text or a list of messages, got null"),
    ({"conversation_a": "hi"}, "'conversation_a' must be a list of messages, got text that is not JSON"),
    ({"conversation_a": turns("tea?", "")}, "'conversation_a[1].content' is empty"),
    ({"conversation_a": turns("tea?")}, "'conversation_a' must end with an answer"),
    ({"conversation_a": turns("milk?", "a")}, "'conversation_a' and 'conversation_b' must differ in answers only"),
    ({"conversation_a": turns("tea?", "a", "and?", "b"), "turn": None}, "'conversation_a' and 'conversation_b' must"),
    (
        {"conversation_a": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]},
        "'conversation_a': a message holds 'image', which is no text",
    ),
    ({"conversation_a": [{"role": "tool", "content": "x"}]}, "'conversation_a[0]' has the unknown role 'tool'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "fault"), BAD)
def test_a_bad_battle_is_named_by_line_and_field_or_listed(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    rows = [GOOD, GOOD | {"question_id": "other"}, GOOD | change]
    message = refused(tmp_path, rows, "auto")
    assert message.startswith(f"log.jsonl, line 3: {fault}")
    assert "read as 'arena'" in message
    found = read(tmp_path, rows, "auto", on_bad_row="skip")
    assert found.rows == {"used": 2, "bad": 1}
    assert found.skipped[0]["row_of"].endswith("line 3")
    assert found.skipped[0]["fault"].startswith(fault)


def test_a_system_message_stays_first(tmp_path: Path) -> None:
    system = {"role": "system", "content": "be brief"}
    row = GOOD | {f"conversation_{side}": [system, *turns("tea?", side)] for side in "ab"}
    (c,) = read(tmp_path, [row], "auto").comparisons
    assert c.prompt == (Message("system", "be brief"), Message("user", "tea?"))


def test_a_row_that_may_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    both = GOOD | {"response_a": "x", "response_b": "y", "prompt": "tea?"}
    message = refused(tmp_path, [both], "auto")
    assert all(part in message for part in ("log.jsonl: ", "'arena' or 'picks'", "'data.source'"))
    assert said(read(tmp_path, [both], "arena")) == [ARENA_SAID[0]]
    columns: Any = {"responses": ["response_a", "response_b"], "user_id": "judge", "chosen": "winner"}
    found = read(tmp_path, [both], "picks", columns=columns, values={"a": "model_a", "b": "model_b"})
    assert said(found) == [("arena_user_0", "tea?", "x", "y")]
    one_hot = both | dict(zip(ONE_HOT, (1, 0, 0), strict=True))
    assert "'arena' or 'picks'" in refused(tmp_path, [{k: v for k, v in one_hot.items() if "conv" not in k}], "auto")


def test_settings_override_what_is_recognised(tmp_path: Path) -> None:
    rows = [row | {"team": "red"} for row in ARENA[:2]]
    found = read(tmp_path, rows, "auto", columns={"user_id": "team", "time": "turn"}, metadata=["language"])
    assert [(c.user_id, c.time, c.metadata) for c in found.comparisons] == [("red", 1.0, {"language": "English"})] * 2
    assert not {"conversation_a", "turn", "winner"} & set(found.notes[0].split(": ")[1].split(", "))
    swapped = read(tmp_path, rows, "auto", values={"b": "model_a", "a": "model_b"})
    assert [(c.chosen, c.rejected) for c in swapped.comparisons] == [("b0", "a0"), ("a1", "b1")]


def test_a_log_that_is_said_to_be_of_this_format_but_is_not_is_refused(tmp_path: Path) -> None:
    row = {"user_id": "u", "prompt": "p", "response": "x"}
    assert "line 1: fields 'conversation_a' and 'conversation_b' are missing; the row has 'user_id'" in refused(
        tmp_path, [row], "arena"
    )


@pytest.mark.parametrize("winner", ["bothbad!", "tie?", "model_a~", "model ä", "A>B", "!"])
def test_a_winner_that_is_no_known_word_is_a_bad_row(tmp_path: Path, winner: str) -> None:
    """Other characters than spaces, brackets and the like may change what a word means."""
    message = refused(tmp_path, [*ARENA, ARENA[0] | {"winner": winner}], "auto")
    assert f"line {len(ARENA) + 1}: 'chosen' (column 'winner') is {winner!r}" in message
    assert all(known in message for known in ("'model a'", "'model b'", "'tie'"))


def renamed(column: str, name: str) -> list[dict[str, object]]:
    return [{(name if key == column else key): value for key, value in row.items()} for row in ARENA]


@pytest.mark.parametrize(
    ("column", "says"), [("judge", "'user_id' is missing; the row has "), ("winner", "columns are ")]
)
def test_an_error_lists_the_columns_that_the_file_has(tmp_path: Path, column: str, says: str) -> None:
    """Not those that are made of the conversations."""
    rows = renamed(column, "other")
    listed = refused(tmp_path, rows, "auto").partition(says)[2].partition(":")[0]
    assert listed == ", ".join(map(repr, rows[0]))


def test_a_column_that_the_format_needs_is_named_alone(tmp_path: Path) -> None:
    message = refused(tmp_path, renamed("conversation_a", "conv_a"), "arena")
    assert message.startswith("log.jsonl, line 1: field 'conversation_a' is missing; the row has 'question_id'")
    assert "did you mean 'conv_a'?" in message
    assert "response_a" not in message
    row = dict.fromkeys(KAGGLE_NAMES, '["x"]') | {"winner_model_a": 1, "winner_model_b": 0}
    assert "field 'winner_tie' is missing; the row has 'id'" in refused(tmp_path, [row], "arena")
