"""A comparison at the door: what a row may be, and what is said of one that is broken."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from prm.data.comparison import Comparison, Message, fingerprint, latest_user_texts, parse_prompt
from prm.errors import DataError
from tests.conftest import read_log

GOOD: dict[str, Any] = {"user_id": "ann", "prompt": "tea?", "chosen": "yes", "rejected": "no"}
ANSWERED = ("user_id", "chosen", "rejected")  # a prompt may be what both answers begin with
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
    **{f"{name} null": (line(**{name: None}), f"'{name}' is missing") for name in ANSWERED},
    "prompt null": (line(prompt=None), "'prompt' is missing, and 'chosen' and 'rejected' do not begin alike"),
    **{f"{name} bool": (line(**{name: True}), f"'{name}' must be text") for name in GOOD},
    **{f"{name} object": (line(**{name: {}}), f"'{name}' must be text") for name in GOOD},
    **{f"{name} half a surrogate": (line(**{name: HALF}), f"'{name}' holds a lone surrogate") for name in GOOD},
    "answers equal": (line(chosen="no"), "'chosen' and 'rejected' are the same text"),
    "answers equal as messages": (line(chosen=turns(("assistant", "no"))), "'chosen' and 'rejected' are the same"),
    "user_id fraction": (line(user_id=7.5), "'user_id' is the number 7.5; ids are text or whole numbers"),
    "user_id list": (line(user_id=["ann"]), "'user_id' must be text, got a list"),
    "user_text number": (line(user_text=3), "'user_text' must be text"),
    "user_text false": (line(user_text=False), "'user_text' must be text"),
    "user_text half a surrogate": (line(user_text=HALF), "'user_text' holds a lone surrogate"),
    "p_chosen above": (line(p_chosen=1.01), "'p_chosen' must lie in [0, 1], got 1.01"),
    "p_chosen below": (line(p_chosen=-0.01), "'p_chosen' must lie in [0, 1], got -0.01"),
    "p_chosen bool": (line(p_chosen=True), "'p_chosen' must be a number, got true/false"),
    "p_chosen text": (line(p_chosen="0.9"), "'p_chosen' must be a number, got text"),
    "p_chosen null": (line(p_chosen=None), "'p_chosen' is empty; give a number, or leave the column out"),
    "p_chosen NaN": (line(p_chosen=float("nan")), "NaN is not a JSON number"),
    "p_chosen huge": (line(p_chosen=10**400), "'p_chosen' is too large"),
    "p_chosen overflows": (line(p_chosen=0).replace("0}", "1e999}"), "'p_chosen' must be a finite number"),
    "weight 0": (line(weight=0), "'weight' must be greater than 0"),
    "weight negative": (line(weight=-1), "'weight' must be greater than 0"),
    "weight bool": (line(weight=True), "'weight' must be a number, got true/false"),
    "weight Infinity": (line(weight=float("inf")), "Infinity is not a JSON number"),
    "time no date": (line(time="last tuesday"), "'time' must be an ISO 8601 date"),
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
    "chosen two messages": (line(chosen=turns(("assistant", "a"), ("assistant", "b"))), "the same conversation before"),
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


def test_p_chosen_below_half_swaps_the_answers() -> None:
    assert Comparison("u", "q", "a", "b", p_chosen=0.25) == Comparison("u", "q", "b", "a", p_chosen=0.75)
    assert Comparison("u", "q", "a", "b", p_chosen=0) == Comparison("u", "q", "b", "a", p_chosen=1.0)


def test_a_tie_keeps_its_order_and_is_a_tie() -> None:
    tie = Comparison("u", "q", "a", "b", p_chosen=0.5)
    assert (tie.chosen, tie.rejected, tie.p_chosen, tie.is_tie) == ("a", "b", 0.5, True)
    assert not Comparison("u", "q", "a", "b", p_chosen=0.51).is_tie


def test_a_null_user_text_is_none_given(log: Path) -> None:
    log.write_text(line(user_text=None), encoding="utf-8")
    assert read_log(log) == [Comparison(**GOOD)]


def test_messages_become_a_tuple_and_keep_their_text() -> None:
    assert parse_prompt(turns(("system", "s"), ("user", " u "))) == (Message("system", "s"), Message("user", " u "))


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


BAD_CALLS: list[tuple[dict[str, Any], str]] = [
    ({"user_id": 7}, "'user_id' must be text, got int 7; put the id in quotes, '7'"),
    ({"user_id": " "}, "'user_id' is empty"),
    ({"prompt": 3}, "'prompt' must be text or a list of messages, got int 3"),
    ({"chosen": None}, "'chosen' must be text, got null (None)"),
    ({"weight": 0.0}, "'weight' must be greater than 0, got 0.0"),
    ({"time": float("nan")}, "'time' must be a finite number, got nan"),
    ({"p_chosen": 2}, "'p_chosen' must lie in [0, 1], got 2.0"),
    ({"chosen_first": 1}, "'chosen_first' must be true or false, got int 1"),
    ({"metadata": []}, "'metadata' must be an object, got a list"),
]


@pytest.mark.parametrize(("change", "said"), BAD_CALLS)
def test_a_comparison_made_by_hand_is_checked_like_one_from_a_file(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        Comparison(**GOOD | change)
    assert str(caught.value) == said


def test_swapped_answers_were_shown_the_other_way_round() -> None:
    assert Comparison("u", "q", "a", "b", p_chosen=0.25, chosen_first=True).chosen_first is False
    assert Comparison("u", "q", "a", "b", p_chosen=0.25).chosen_first is None
    assert Comparison("u", "q", "a", "b", p_chosen=0.5, chosen_first=True).chosen_first is True


def test_the_origin_takes_no_part_in_equality_and_metadata_does() -> None:
    one = Comparison("u", "q", "a", "b", origin="here")
    assert one == Comparison("u", "q", "a", "b", origin="there")
    assert one != Comparison("u", "q", "a", "b", metadata={"topic": 1})


def test_a_row_holds_what_differs_from_the_defaults() -> None:
    assert Comparison("u", "q", "a", "b").to_row() == {"user_id": "u", "prompt": "q", "chosen": "a", "rejected": "b"}
    full = {"user_text": "t", "p_chosen": 0.75, "weight": 2.0, "time": 3, "chosen_first": False, "metadata": {"a": [1]}}
    assert Comparison(**GOOD | full).to_row() == GOOD | full


def test_the_last_text_of_each_user_counts() -> None:
    log = [
        Comparison(user, "why?", "a", f"b {i}", user_text=text)
        for i, (user, text) in enumerate([("ann", "old"), ("ben", ""), ("ann", "new"), ("ann", ""), ("carl", "his")])
    ]
    assert {c.user_id: c.user_text for c in latest_user_texts(log)} == {"ann": "new", "carl": "his"}
