"""Ratings to pairs, worked by hand."""

import math
from pathlib import Path
from typing import Any

import pytest

from prm.data.comparison import Message
from prm.errors import DataError
from tests.prm.data.sources.logs import read, read_csv, refused, won


def rated(response: str, rating: float, user: str = "ann", prompt: str = "tea?", **more: Any) -> dict[str, Any]:
    return {"user_id": user, "prompt": prompt, "response": response, "rating": rating} | more


def test_every_two_answers_of_one_person_to_one_prompt_are_a_pair(tmp_path: Path) -> None:
    """Three answers with 1, 3 and 3: two pairs, and one that says nothing; the others meet nobody."""
    rows = [rated("a", 1), rated("b", 3), rated("c", 3), rated("a", 5, user="bob"), rated("a", 5, prompt="milk?")]
    found = read(tmp_path, rows, "ratings")
    assert won(found) == [("b", "a"), ("c", "a")]
    assert found.rows == {"used": 3, "no other response of that user to that prompt": 2}
    assert found.pairs == {"kept": 2, "judged equal": 1}
    assert found.skipped == []
    counts, rule, pairs = found.account()
    assert counts.startswith("5 rows: 3 used, 2 ")
    assert "at most 8" in rule
    assert pairs == "3 pairs: 1 judged equal, 2 kept"


def test_an_answer_that_is_in_no_pair_is_counted_so(tmp_path: Path) -> None:
    found = read(tmp_path, [rated("a", 1), rated("b", 1), rated("a", 1, "bob"), rated("b", 2, "bob")], "ratings")
    assert found.rows == {"used": 2, "in no pair": 2}
    assert found.pairs == {"kept": 1, "judged equal": 1}


@pytest.mark.parametrize(("gap", "pairs"), [(0.0, 6), (1.0, 6), (1.5, 4), (2.0, 4), (2.5, 2), (4.0, 1)])
def test_gap_is_the_least_difference_and_is_itself_enough(tmp_path: Path, gap: float, pairs: int) -> None:
    """1, 2, 3 and 5 are 1, 1, 2, 2, 3 and 4 apart."""
    found = read(tmp_path, [rated(str(r), r) for r in (1, 2, 3, 5)], "ratings", min_rating_difference=gap)
    assert len(found.comparisons) == pairs
    assert all(int(c.chosen) - int(c.rejected) >= gap for c in found.comparisons)
    assert found.pairs["equal or too close" if gap else "judged equal"] == 6 - pairs
    assert (f"one prompt, {gap:g} or more apart; " in found.rule) == (gap > 0)


def test_a_difference_of_exactly_the_gap_counts_whatever_binary_fractions_make_of_it(tmp_path: Path) -> None:
    """3.07 - 1.07 is 1.9999999999999998 to a computer."""
    assert (
        len(read(tmp_path, [rated("a", 3.07), rated("b", 1.07)], "ratings", min_rating_difference=2.0).comparisons) == 1
    )
    assert "no comparison" in refused(
        tmp_path, [rated("a", 3.07), rated("b", 1.08)], "ratings", min_rating_difference=2.0
    )


def test_standardised_a_gap_counts_each_persons_own_deviations(tmp_path: Path) -> None:
    """Ann gives 1, 2, 3 (deviation 0.816): 1 apart is 1.22 deviations; Bob gives 0, 10, 20: 10 apart is 1.22 too."""
    rows = [rated(f"a{r}", r) for r in (1, 2, 3)] + [rated(f"b{r}", r, "bob") for r in (0, 10, 20)]
    deviation = math.sqrt(2 / 3)
    assert (
        len(read(tmp_path, rows, "ratings", standardise=True, min_rating_difference=0.99 / deviation).comparisons) == 6
    )
    assert (
        len(read(tmp_path, rows, "ratings", standardise=True, min_rating_difference=1.01 / deviation).comparisons) == 2
    )
    assert (
        len(read(tmp_path, rows, "ratings", min_rating_difference=1.01).comparisons) == 4
    )  # one of Ann's, all of Bob's


def test_the_deviation_is_taken_over_all_of_a_persons_prompts(tmp_path: Path) -> None:
    """4 and 6 for tea, 0 and 10 for milk: mean 5, deviation sqrt(13) = 3.61, so tea's 2 apart is 0.55."""
    rows = [rated("a", 4), rated("b", 6), rated("c", 0, prompt="milk?"), rated("d", 10, prompt="milk?")]
    assert won(read(tmp_path, rows, "ratings", standardise=True, min_rating_difference=0.55)) == [
        ("b", "a"),
        ("d", "c"),
    ]
    assert won(read(tmp_path, rows, "ratings", standardise=True, min_rating_difference=0.56)) == [("d", "c")]


def test_a_person_who_gives_one_rating_only_prefers_nothing(tmp_path: Path) -> None:
    """Seven times 0.1 has a mean a hair off, which must not be blown up to preferences."""
    rows = [rated(f"a{i}", 0.1) for i in range(7)] + [rated("x", 1, "bob"), rated("y", 2, "bob")]
    found = read(tmp_path, rows, "ratings", standardise=True)
    assert won(found) == [("y", "x")]
    assert found.rows == {"used": 2, "in no pair": 7}


def test_of_an_answer_that_was_rated_again_the_later_row_counts(tmp_path: Path) -> None:
    found = read(tmp_path, [rated("a", 5), rated("b", 3), rated("a", 1)], "ratings")
    assert won(found) == [("b", "a")]
    assert found.rows == {"used": 2, "judged again later": 1}


def test_weight_time_text_and_metadata_of_two_rows_are_merged(tmp_path: Path) -> None:
    """Weights are averaged; time and user text are the later row's; metadata is shared, or both sides' in order."""
    rows = [
        rated("a", 1, weight=1, time="2024-01-02", user_text="early", topic="x", model="m1", metadata={"lang": "en"}),
        rated("b", 2, weight=2, time="2024-01-01", user_text="late", topic="x", model="m2", extra=1),
    ]
    (c,) = read(tmp_path, rows, "ratings", metadata=["topic", "model", "extra"]).comparisons
    assert (c.chosen, c.weight, c.time, c.user_text) == ("b", 1.5, "2024-01-01", "late")
    assert c.metadata == {"topic": "x", "model": ["m2", "m1"], "extra": [1, None], "lang": [None, "en"]}
    assert c.origin == f"{tmp_path}/log.jsonl, line 2 and {tmp_path}/log.jsonl, line 1"
    (c,) = read(tmp_path, [rated("b", 2, time=1, user_text="early"), rated("a", 1, time=2)], "ratings").comparisons
    assert (c.chosen, c.time, c.user_text) == ("b", 2, "")
    assert c.chosen_first is None


def test_weights_at_the_edge_of_what_floats_hold_are_averaged(tmp_path: Path) -> None:
    (c,) = read(tmp_path, [rated("a", 1, weight=1e308), rated("b", 2, weight=1.5e308)], "ratings").comparisons
    assert c.weight == pytest.approx(1.25e308)


def test_completion_is_the_response_and_may_be_a_conversation_of_one_answer(tmp_path: Path) -> None:
    """TRL's name; a prompt as one user message is the prompt as text."""
    prompt = [{"role": "user", "content": "tea?"}]
    rows = [
        {"user_id": "u", "prompt": prompt, "completion": [{"role": "assistant", "content": "a"}], "rating": 1},
        {"user_id": "u", "prompt": "tea?", "completion": "b", "rating": 2},
    ]
    (c,) = read(tmp_path, rows, "ratings").comparisons
    assert (c.prompt, c.chosen, c.rejected) == ((Message("user", "tea?"),), "b", "a")


def test_a_time_that_is_none_is_a_bad_row_even_where_it_is_in_no_pair(tmp_path: Path) -> None:
    rows = [rated("a", 1), rated("b", 2), rated("c", 3, "alone", time="last tuesday")]
    with pytest.raises(DataError, match="line 3: 'time'"):
        read(tmp_path, rows, "ratings")
    found = read(tmp_path, rows, "ratings", on_bad_row="skip")
    assert (len(found.comparisons), found.rows["bad"]) == (1, 1)


def test_a_csv_gives_numbers_as_text(tmp_path: Path) -> None:
    table = "user_id,prompt,response,rating,weight,time\n7,q,a,-1.5,2,\n7,q,b,1e1,4,1700000000\n"
    (c,) = read_csv(tmp_path, table, "ratings").comparisons
    assert (c.user_id, c.chosen, c.weight, c.time) == ("7", "b", 3.0, 1.7e9)


BAD = [
    ({"rating": None}, "field 'rating' is missing"),
    ({"rating": "5"}, "'rating' must be a number, got text"),
    ({"rating": True}, "'rating' must be a number, got true/false"),
    ({"response": ["a", "b"]}, "'response' must be text, got a list"),
    ({"response": " "}, "'response' is empty"),
    ({"weight": 0}, "'weight' must be greater than 0, got 0.0"),
    ({"weight": "2"}, "'weight' must be a number, got text"),
    ({"time": " "}, "'time' is empty"),
    ({"time": [1]}, "'time' must be a number, got a list"),
    ({"user_text": 3}, "'user_text' must be text, got int 3"),
    ({"metadata": 3}, "'metadata' must be an object, got int 3"),
    ({"prompt": []}, "'prompt' is an empty list"),
    ({"user_id": True}, "'user_id' must be text, got true/false"),
    ({"user_id": "\ud83d"}, "'user_id' holds a lone surrogate"),
]


@pytest.mark.parametrize(("change", "said"), BAD)
def test_a_bad_rating_is_named_by_line_and_field(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    message = refused(tmp_path, [rated("a", 1), rated("b", 2) | change], "ratings")
    assert message.startswith("log.jsonl, line 2: ")
    assert said in message


@pytest.mark.parametrize("cell", ["nan", "inf", "-Infinity", "good", "1,5"])
def test_a_rating_in_a_csv_must_be_a_finite_number(tmp_path: Path, cell: str) -> None:
    with pytest.raises(ValueError, match=r"log\.csv, line 2: 'rating'"):
        read_csv(tmp_path, f'user_id,prompt,response,rating\nu,q,a,"{cell}"\n', "ratings")


def test_an_id_beside_trls_completion_is_no_misspelt_response(tmp_path: Path) -> None:
    rows = [{"user_id": "u", "prompt": "p", "completion": c, "response_id": c, "rating": i} for i, c in enumerate("ab")]
    assert won(read(tmp_path, rows, "ratings")) == [("b", "a")]
