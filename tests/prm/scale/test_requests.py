"""Rows of files to score: what is asked, and what is wrong with a row."""

import pytest

from prm.errors import DataError
from prm.scale.requests import ADDED, parse_request, scored_row


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"response": "a", "responses": ["b"]}, "both 'response' and 'responses'"),
        ({}, "'response' .* or 'responses' .* missing"),
        ({"response": None, "responses": None}, "missing"),
        ({"response": ["a"]}, "'response' is one text"),
        ({"responses": '["a"]'}, "'responses' must be a list of texts, got text"),
        ({"responses": []}, "'responses' is empty"),
        ({"responses": ["a", 3]}, r"'responses\[1\]' must be text"),
        ({"response": ""}, "'response'"),
        *(({"response": "a", name: 1.0}, f"'{name}', which the output adds") for name in ADDED),
    ],
)
def test_a_bad_row_is_named_by_its_field(row: dict[str, object], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        parse_request({"prompt": "why?", **row})


def test_a_table_may_have_both_columns() -> None:
    """A row has a value in one of them, as in Parquet."""
    one: dict[str, object] = {"prompt": "why?", "response": "a", "responses": None}
    several: dict[str, object] = {"prompt": "why?", "responses": ["a", "b"]}
    asked = [parse_request(row) for row in (one, several)]
    assert [a.responses for a in asked] == [["a"], ["a", "b"]]
    out = [scored_row(row, a, [1.0] * len(a.responses), False) for row, a in zip((one, several), asked, strict=True)]
    assert [{"reward", "rewards"} & row.keys() for row in out] == [{"reward"}, {"rewards"}]
