"""Rankings to pairs, worked by hand."""

from pathlib import Path
from typing import Any

import pytest

from tests.prm.data.sources.logs import read, read_csv, refused, won


def ranking(*responses: str, **more: Any) -> dict[str, Any]:
    return {"user_id": "ann", "prompt": "tea?", "responses": list(responses)} | more


def test_without_ranks_the_best_stands_first(tmp_path: Path) -> None:
    found = read(tmp_path, [ranking("x", "y", "z")], "rankings")
    assert won(found) == [("x", "y"), ("x", "z"), ("y", "z")]
    assert {c.chosen_first for c in found.comparisons} == {None}  # nobody says how they were shown
    assert (found.rows, found.pairs) == ({"used": 1}, {"kept": 3})


def test_with_ranks_the_answers_stand_as_they_were_shown(tmp_path: Path) -> None:
    """Ranks 2, 1, 2: y beats both, x and z are tied."""
    found = read(tmp_path, [ranking("x", "y", "z", ranks=[2, 1, 2])], "rankings")
    assert won(found) == [("x", "z", "="), ("y", "x"), ("y", "z")]
    assert {c.rejected: c.chosen_first for c in found.comparisons if not c.is_tie} == {"x": False, "z": True}


def test_tied_ranks_can_be_dropped(tmp_path: Path) -> None:
    found = read(tmp_path, [ranking("x", "y", "z", ranks=[2, 1, 2])], "rankings", ties="drop")
    assert won(found) == [("y", "x"), ("y", "z")]
    assert found.pairs == {"kept": 2, "tied": 1}


def test_an_answer_enters_at_most_max_pairs(tmp_path: Path) -> None:
    """Six answers, two pairs each: a ring of six."""
    found = read(tmp_path, [ranking(*"uvwxyz")], "rankings", max_pairs=2)
    assert found.pairs == {"kept": 6, "over max_pairs": 9}


def test_a_csv_gives_lists_as_json_and_ranks_from_columns_as_text(tmp_path: Path) -> None:
    table = 'user_id,prompt,responses,ranks\nu,q,"[""x"", ""y""]","[2, 1]"\n'
    assert won(read_csv(tmp_path, table, "rankings")) == [("y", "x")]
    table = "user_id,prompt,a,b,c,rank_a,rank_b,rank_c\nu,q,x,,z,2,,1\n"
    columns = {"responses": ["a", "b", "c"], "ranks": ["rank_a", "rank_b", "rank_c"]}
    assert won(read_csv(tmp_path, table, "rankings", columns=columns)) == [("z", "x")]


def test_ranks_of_other_columns_than_the_answers_are_refused(tmp_path: Path) -> None:
    """x and z stand in a and c, but the ranks are those of a and b: whose is the second?"""
    row = {"user_id": "u", "prompt": "q", "a": "x", "b": None, "c": "z", "rank_a": 2, "rank_b": 1, "rank_c": None}
    columns = {"responses": ["a", "b", "c"], "ranks": ["rank_a", "rank_b", "rank_c"]}
    message = refused(tmp_path, [row], "rankings", columns=columns)
    assert message.startswith(
        "log.jsonl, line 1: the columns of 'responses' and of 'ranks' are not empty in the same places"
    )


BAD: list[tuple[dict[str, Any], str]] = [
    (ranking("x"), "'responses' holds 1 response; a ranking needs two or more"),
    (ranking("x", "y", ranks=[1]), "'ranks' holds 1 numbers for 2 responses"),
    (ranking("x", "y", ranks="1, 2"), "'ranks' must be a list of numbers, got text"),
    (ranking("x", "y", ranks=[1, None]), "'ranks[1]' must be a number, got null"),
    (ranking("x", "y", ranks=[1, "2"]), "'ranks[1]' must be a number, got text"),
    (ranking("x", "y", ranks=[1, True]), "'ranks[1]' must be a number, got true/false"),
    (ranking("x", " "), "'responses[1]' is empty"),
    (ranking("x", "y", prompt=None), "field 'prompt' is missing"),
    (ranking("x", "y", weight=0), "'weight' must be greater than 0"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_a_bad_ranking_is_named_by_line_and_field(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    message = refused(tmp_path, [ranking("x", "y"), row], "rankings")
    assert message.startswith("log.jsonl, line 2: ")
    assert said in message


def test_the_same_text_twice_is_no_pair(tmp_path: Path) -> None:
    found = read(tmp_path, [ranking("x", "x", "y")], "rankings")
    assert won(found) == [("x", "y")]
    assert found.pairs == {"kept": 1, "said twice": 1, "the same text twice": 1}
