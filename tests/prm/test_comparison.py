"""Feedback at the door: what a row may be, and what is said of one that is broken."""

import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.comparison import Comparison, Message, fingerprint, parse_prompt
from prm.errors import DataError
from prm.files import write_jsonl
from tests.conftest import read_log

FIELDS = ("user_id", "prompt", "chosen", "rejected", "user_text", "p_chosen", "weight", "time")

GOOD: dict[str, Any] = {"user_id": "ann", "prompt": "tea?", "chosen": "yes", "rejected": "no"}
HALF = "\ud83d"  # the first half of an emoji


def line(**changes: Any) -> str:
    """A good row with some fields changed, as ASCII JSON."""
    return json.dumps(GOOD | changes)


def without(name: str) -> str:
    return json.dumps({k: v for k, v in GOOD.items() if k != name})


def turns(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


BROKEN: dict[str, tuple[str, str]] = {  # what is wrong -> (the line, what the message must say)
    **{f"{name} missing": (without(name), f"'{name}' is missing") for name in GOOD},
    **{f"{name} empty": (line(**{name: ""}), f"'{name}' is empty") for name in GOOD},
    **{f"{name} white space": (line(**{name: " \n\t"}), f"'{name}' is empty") for name in GOOD},
    **{f"{name} null": (line(**{name: None}), f"'{name}' must be text") for name in GOOD},
    **{f"{name} bool": (line(**{name: True}), f"'{name}' must be text") for name in GOOD},
    **{f"{name} object": (line(**{name: {}}), f"'{name}' must be text") for name in GOOD},
    **{f"{name} half a surrogate": (line(**{name: HALF}), f"'{name}' holds half of a surrogate") for name in GOOD},
    "answers equal": (line(chosen="no"), "'chosen' and 'rejected' are the same text"),
    "answers equal as messages": (line(chosen=turns(("assistant", "no"))), "'chosen' and 'rejected' are the same"),
    "user_id number": (line(user_id=7), "'user_id' must be text, got int 7; put the id in quotes"),
    "user_id huge": (line(user_id=10**400), "'user_id' must be text"),
    "user_text number": (line(user_text=3), "'user_text' must be text"),
    "user_text false": (line(user_text=False), "'user_text' must be text"),
    "user_text half a surrogate": (line(user_text=HALF), "'user_text' holds half of a surrogate"),
    "p_chosen above": (line(p_chosen=1.01), "'p_chosen' must lie in [0, 1], got 1.01"),
    "p_chosen below": (line(p_chosen=-0.01), "'p_chosen' must lie in [0, 1], got -0.01"),
    "p_chosen bool": (line(p_chosen=True), "'p_chosen' must be a number, got true/false"),
    "p_chosen text": (line(p_chosen="0.9"), "'p_chosen' must be a number, got text"),
    "p_chosen null": (line(p_chosen=None), "'p_chosen' must be a number, got null"),
    "p_chosen NaN": (line(p_chosen=float("nan")), "NaN is not a JSON number"),
    "p_chosen huge": (line(p_chosen=10**400), "'p_chosen' is too large"),
    "p_chosen overflows": (line(p_chosen=0).replace("0}", "1e999}"), "'p_chosen' must be a finite number"),
    "weight 0": (line(weight=0), "'weight' must be greater than 0"),
    "weight negative": (line(weight=-1), "'weight' must be greater than 0"),
    "weight bool": (line(weight=True), "'weight' must be a number, got true/false"),
    "weight Infinity": (line(weight=float("inf")), "Infinity is not a JSON number"),
    "time bool": (line(time=True), "'time' must be a number"),
    "time list": (line(time=[1]), "'time' must be a number, got a list"),
    "time huge": (line(time=10**400), "'time' is too large"),
    "time -Infinity": (line(time=float("-inf")), "-Infinity is not a JSON number"),
    "integer beyond parsing": (line(weight=1).replace("1}", "1" * 5000 + "}"), "not valid JSON"),
    "prompt no messages": (line(prompt=[]), "'prompt' is an empty list"),
    "prompt of words": (line(prompt=["tea?"]), "'prompt[0]' must be an object with 'role' and 'content'"),
    "prompt lacks content": (line(prompt=[{"role": "user"}]), "'prompt[0]' must be an object with"),
    "prompt empty turn": (line(prompt=turns(("user", " "))), "'prompt[0].content' is empty"),
    "prompt number in turn": (line(prompt=turns(("user", 4))), "'prompt[0].content' must be text"),
    "prompt unknown role": (
        line(prompt=turns(("user", "a"), ("tool", "b"))),
        "'prompt[1]' has the unknown role 'tool'",
    ),
    "prompt role is a list": (line(prompt=turns((["user"], "a"))), "'prompt[0]' has the unknown role"),
    "prompt ends with answer": (line(prompt=turns(("user", "a"), ("assistant", "b"))), "'prompt' must end with"),
    "prompt ends with system": (line(prompt=turns(("system", "a"))), "'prompt' must end with a message of role 'user'"),
    "chosen two messages": (line(chosen=turns(("assistant", "a"), ("assistant", "b"))), "'chosen' must be text or a"),
    "rejected said by user": (line(rejected=turns(("user", "a"))), "'rejected' must be text or a single message"),
    "array": ("[1, 2]", "expected a JSON object, got a list"),
    "bare number": ("3", "expected a JSON object, got int 3"),
    "bare null": ("null", "expected a JSON object, got null"),
    "deep nesting": ("[" * 100_000, "nested too deeply"),
    "deep prompt": (line(prompt=0).replace('"prompt": 0', '"prompt": ' + "[" * 100_000), "nested too deeply"),
    "not JSON": ("{user_id: ann}", "not valid JSON"),
    "two objects": ("{}{}", "not valid JSON"),
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def fault(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_log(path)
    return str(caught.value)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named_by_file_line_and_fault(case: str, log: Path) -> None:
    broken, said = BROKEN[case]
    log.write_text(f"{line()}\n\n{broken}\n{line()}\n", encoding="utf-8")  # the blank line counts
    message = fault(log)
    assert message.startswith(f"{log}, line 3: ")
    assert said in message


def test_time_holding_half_a_surrogate_is_refused_like_any_other_text(log: Path) -> None:
    log.write_text(line(time=HALF) + "\n", encoding="utf-8")
    message = fault(log)
    assert message.startswith(f"{log}, line 1: ")
    assert "'time'" in message


def test_bad_utf8_is_named_by_line_and_byte(log: Path) -> None:
    log.write_bytes(line().encode() + b'\n{"user_id": "\xff"}\n')
    assert fault(log) == f"{log}, line 2: not UTF-8 text (byte 13 of the line)"


def test_a_truncated_last_line_is_called_cut_short(log: Path) -> None:
    log.write_text(line() + "\n" + line()[:-9], encoding="utf-8")
    message = fault(log)
    assert f"{log}, line 2: not valid JSON" in message
    assert "the line may be cut short" in message


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n", b"\xef\xbb\xbf"], ids=["nothing", "white space", "BOM"])
def test_a_file_without_rows_is_empty(content: bytes, log: Path) -> None:
    log.write_bytes(content)
    assert fault(log) == f"{log}: the file is empty"


def test_a_missing_file_is_named(log: Path) -> None:
    assert fault(log) == f"{log}: no such file"


def test_p_chosen_below_half_swaps_the_answers() -> None:
    assert Comparison("u", "q", "a", "b", p_chosen=0.25) == Comparison("u", "q", "b", "a", p_chosen=0.75)
    assert Comparison("u", "q", "a", "b", p_chosen=0) == Comparison("u", "q", "b", "a", p_chosen=1.0)


def test_a_tie_keeps_its_order_and_is_a_tie() -> None:
    tie = Comparison("u", "q", "a", "b", p_chosen=0.5)
    assert (tie.chosen, tie.rejected, tie.p_chosen, tie.is_tie) == ("a", "b", 0.5, True)
    assert not Comparison("u", "q", "a", "b", p_chosen=0.51).is_tie


def test_answers_as_chat_messages_equal_plain_text(log: Path) -> None:
    as_chat = line(chosen=turns(("assistant", "yes")), rejected=turns(("assistant", "no")))
    log.write_text(f"{as_chat}\n{line()}\n", encoding="utf-8")
    first, second = read_log(log)
    assert first == second == Comparison(**GOOD)


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated(log: Path) -> None:
    log.write_bytes(b"\xef\xbb\xbf" + line().encode() + b"\r\n" + line(user_id="bob").encode())
    assert [c.user_id for c in read_log(log)] == ["ann", "bob"]


def test_a_null_user_text_is_none_given(log: Path) -> None:
    log.write_text(line(user_text=None), encoding="utf-8")
    assert read_log(log) == [Comparison(**GOOD)]


def test_messages_become_a_tuple_and_keep_their_text() -> None:
    assert parse_prompt(turns(("system", "s"), ("user", " u "))) == (Message("system", "s"), Message("user", " u "))


ROWS = [
    Comparison("ünï 😀", 'línea\u2028two\n\t"q" \\ \x00', "はい", "いいえ", user_text="né à Paris", time="2024-01-01"),
    Comparison(
        "b", (Message("system", "s"), Message("user", "日本")), " a ", "a", p_chosen=0.1, weight=1 / 3, time=1.5
    ),
    Comparison("a", "q", "x", "y", p_chosen=0.5, time=0),
]


def test_what_is_written_is_read_back_exactly_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    write_jsonl(path, ROWS)
    again = read_log(path)
    assert again == ROWS
    assert [c.origin for c in again] == [f"{path}, line {n}" for n in (1, 2, 3)]


def test_the_fingerprint_follows_content_and_order_but_not_layout(log: Path) -> None:
    one, two = Comparison("u", "q", "a", "b"), Comparison("v", "q", "a", "b")
    variants: list[tuple[Comparison, ...]] = [(one, two), (two, one), (one,), (one, one)]
    for args in (("w", "q", "a", "b"), ("u", "p", "a", "b"), ("u", "q", "b", "a"), ("u", "q", "a", "b", "text")):
        variants.append((Comparison(*args), two))
    for name in ("p_chosen", "weight", "time"):
        variants.append((replace(one, **cast(Any, {name: 0.9})), two))
    assert len({fingerprint(rows) for rows in variants}) == len(variants)
    log.write_text('\n{"rejected": "b",  "chosen": "a", "prompt": "q", "user_id": "u"}\n', encoding="utf-8")
    assert fingerprint(read_log(log)) == fingerprint([one])


def test_fields_that_are_not_read_are_logged_once(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    log.write_text(f"{line(mood='b', age=1)}\n{line(age=2)}\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "prm.comparison"):
        read_log(log)
    assert [r.getMessage() for r in caplog.records] == [f"{log}: fields that are not read: age, mood"]


def test_a_write_that_fails_half_way_leaves_the_old_file(log: Path) -> None:
    def breaks() -> Iterator[Comparison]:
        yield from ROWS
        raise RuntimeError("half way")

    write_jsonl(log, ROWS[:1])
    before = log.read_bytes()
    with pytest.raises(RuntimeError, match="half way"):
        write_jsonl(log, breaks())
    assert log.read_bytes() == before


def read_or_refuse(content: bytes) -> None:
    """Any other error than `DataError` escapes and fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_bytes(content)
        try:
            comparisons = read_log(path)
        except DataError:
            return
        assert comparisons
        assert all(isinstance(c, Comparison) and 0.5 <= c.p_chosen <= 1.0 for c in comparisons)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.binary() | st.text().map(str.encode) | st.binary().map(lambda b: line().encode() + b"\n" + b))
def test_arbitrary_bytes_are_read_or_refused(content: bytes) -> None:
    read_or_refuse(content)


ANY_TEXT = st.text(st.characters(), max_size=5)  # halves of surrogates included
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.sampled_from(["user", "assistant"])
KEYS = ANY_TEXT | st.sampled_from(["role", "content"])
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.lists(st.fixed_dictionaries({"role": inner, "content": inner}), max_size=3)
    ),
    max_leaves=6,
)
ANY_FIELDS = st.dictionaries(st.sampled_from(FIELDS), JSON)
FEW_FIELDS = st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=2)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(FEW_FIELDS.map(lambda changes: GOOD | changes) | ANY_FIELDS)
def test_arbitrary_values_of_the_known_fields_are_read_or_refused(row: dict[str, Any]) -> None:
    read_or_refuse(json.dumps(row).encode())
