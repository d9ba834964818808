"""Argilla's records: SDK 2 nested and flat, SDK 1 as a data set and as its API has them, by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from prm.config import FeedbackConfig
from prm.data.sources import read_feedback
from tests.prm.data.sources.formats.logs import said
from tests.prm.data.sources.logs import read, read_csv, refused

Answers = list[tuple[str, Any, str]]  # user, value, status


def fields(number: int) -> dict[str, Any]:
    return {"prompt": f"q{number}", "response-1": f"x{number}", "response-2": f"y{number}"}


# person, answer to "preference", status; by record
SUBMITTED, DISCARDED, DRAFT = "submitted", "discarded", "draft"
LABELS: list[Answers] = [
    [("u1", "response-1", SUBMITTED)],
    [("u1", "response-2", SUBMITTED), ("u2", "response-1", SUBMITTED)],
    [("u1", "tie", SUBMITTED)],
    [("u1", "response-1", DISCARDED), ("u2", "response-2", SUBMITTED)],
    [],
    *([("u3", f"response-{1 + i % 2}", SUBMITTED)] for i in range(5)),
]
SAID = [
    ("u1", "q0", "x0", "y0"),
    ("u1", "q1", "y1", "x1"),
    ("u2", "q1", "x1", "y1"),
    ("=u1", "q2", "x2", "y2"),
    ("u2", "q3", "y3", "x3"),
    *(("u3", f"q{i}", *((f"x{i}", f"y{i}") if i % 2 else (f"y{i}", f"x{i}"))) for i in range(5, 10)),
]


def nested(number: int, answers: Answers) -> dict[str, Any]:
    """As `dataset.records.to_json` writes it: without the status."""
    preference = [{"value": value, "user_id": user} for user, value, _ in answers]
    why = [{"value": "since", "user_id": user} for user, _, _ in answers]
    responses = {"preference": preference, "why": why} if answers else {}
    more = {"metadata": {}, "suggestions": {}, "vectors": {}, "_server_id": f"s{number}"}
    return {"id": str(number), "fields": fields(number), "responses": responses, **more}


def flat(number: int, answers: Answers, question: str = "preference") -> dict[str, Any]:
    """As `dataset.records.to_datasets` has it."""
    users, values, statuses = ([*column] for column in zip(*answers)) if answers else ([], [], [])
    row = {"id": str(number), "status": "completed", "_server_id": f"s{number}", **fields(number)}
    said = {f"{question}.responses": values, f"{question}.responses.users": users}
    return row | said | {f"{question}.responses.status": statuses, f"{question}.suggestion": None}


def first_sdk(number: int, answers: Answers, question: str = "preference") -> dict[str, Any]:
    """As `format_as("datasets")` of the first SDK has it."""
    said = [{"user_id": user, "value": value, "status": status} for user, value, status in answers]
    about = {f"{question}-suggestion": None, f"{question}-suggestion-metadata": {"type": None}, "external_id": None}
    return {**fields(number), question: said, **about, "metadata": "{}"}


def api(number: int, answers: Answers) -> dict[str, Any]:
    """As the server's API has a record."""
    said = [
        {"user_id": user, "status": status, "values": {"preference": {"value": value}}}
        for user, value, status in answers
    ]
    return {"id": str(number), "fields": fields(number), "responses": said}


@pytest.mark.parametrize("form", [flat, first_sdk, api])
def test_labels_by_hand(tmp_path: Path, form: Any) -> None:
    found = read_feedback(_config(tmp_path, [form(i, answers) for i, answers in enumerate(LABELS)]))
    assert said(found) == SAID
    assert found.rows == {"used": 10, "answer discarded": 1, "record without answer": 1}
    assert found.read_as.startswith("read as 'argilla'")
    assert "'response-1' is response-1" in found.read_as


def _config(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> FeedbackConfig:
    Dataset.from_list(rows).save_to_disk(str(folder / "set"))
    return FeedbackConfig(path=str(folder / "set"), **settings)


def test_nested_records_by_hand(tmp_path: Path) -> None:
    submitted = [[a for a in answers if a[2] == SUBMITTED] for answers in LABELS]
    rows = [nested(i, answers) for i, answers in enumerate(submitted)]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(rows, indent=1))
    found = read_feedback(FeedbackConfig(path=str(path)))
    assert said(found) == SAID
    assert found.rows == {"used": 10, "record without answer": 1}
    assert found.notes == ["columns that are not read: why"]


RANKINGS: list[Any] = [
    [{"value": "response-1", "rank": 1}, {"value": "response-2", "rank": 2}],
    [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 2}],
    [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 1}],
]


@pytest.mark.parametrize("form", [flat, first_sdk])
@pytest.mark.parametrize("lists", [False, True])
def test_rankings_by_hand(tmp_path: Path, form: Any, lists: bool) -> None:
    """Ten records; a ranking as objects, or as the object of lists that `datasets` makes of them."""
    rows = []
    for i in range(10):
        value = RANKINGS[i % 3]
        if lists:
            value = {name: [one[name] for one in value] for name in ("rank", "value")}
        rows.append(form(i, [(f"u{i % 2}", value, SUBMITTED)], "order"))
    found = read(tmp_path, rows, "auto")
    expected = []
    for i in range(10):
        pair = (f"y{i}", f"x{i}") if i % 3 == 1 else (f"x{i}", f"y{i}")
        expected.append((f"{'=' if i % 3 == 2 else ''}u{i % 2}", f"q{i}", *pair))
    assert said(found) == expected
    assert found.rows == {"used": 10}


def test_a_ranking_as_a_list_of_names_has_the_best_first(tmp_path: Path) -> None:
    rows = [flat(i, [("u", ["response-2", "response-1"][:: 1 - 2 * (i % 2)], SUBMITTED)], "order") for i in range(4)]
    pairs = [(f"x{i}", f"y{i}") if i % 2 else (f"y{i}", f"x{i}") for i in range(4)]
    assert said(read(tmp_path, rows, "auto")) == [("u", f"q{i}", *pair) for i, pair in enumerate(pairs)]


def test_a_rating_of_one_response_is_a_rating(tmp_path: Path) -> None:
    rows = []
    for i in range(4):
        said_of = {"rating": [{"value": 1 + i, "user_id": "u"}]}
        rows.append({"id": str(i), "fields": {"prompt": "q", "response": f"r{i}"}, "responses": said_of})
    found = read(tmp_path, rows, "auto")
    assert {(c.chosen, c.rejected) for c in found.comparisons} == {
        (f"r{j}", f"r{i}") for j in range(4) for i in range(j)
    }


def test_two_questions_that_may_be_the_pick_are_refused(tmp_path: Path) -> None:
    row = nested(1, [("u", "response-1", SUBMITTED)])
    row["responses"]["safer"] = [{"value": "response-2", "user_id": "u"}]
    message = refused(tmp_path, [row], "auto")
    assert all(part in message for part in ("'preference' or 'safer'", "'data.columns.chosen'"))
    assert said(read(tmp_path, [row], "auto", columns={"chosen": "safer"})) == [("u", "q1", "y1", "x1")]
    rows = [flat(0, [("u", RANKINGS[0], SUBMITTED)], "order") | flat(0, [("u", RANKINGS[1], SUBMITTED)], "taste")]
    message = refused(tmp_path, rows, "auto")
    assert all(part in message for part in ("'order' or 'taste'", "'data.columns.ranks'"))
    assert said(read(tmp_path, rows, "auto", columns={"ranks": "taste"})) == [("u", "q0", "y0", "x0")]


GOOD = nested(1, [("u", "response-1", SUBMITTED)])
BAD: list[tuple[dict[str, Any], str]] = [
    ({"responses": {"preference": [{"value": "response-3", "user_id": "u"}]}}, "'chosen' (column 'preference') is"),
    ({"responses": {"preference": [{"value": "response-1"}]}}, "field 'user_id' is missing"),
    ({"responses": {"why": [{"value": "x", "user_id": "u"}]}}, "field 'chosen' (column 'preference') is missing"),
    ({"responses": {"preference": ["response-1"]}}, "the answers to 'preference' must be a list of objects"),
    ({"responses": ["response-1"]}, "the answers to 'responses' must be a list of objects"),
    ({"fields": {"prompt": "q", "response-1": "x", "response-2": ""}}, "'responses[1]' is empty"),
]


@pytest.mark.parametrize(("change", "fault"), BAD)
def test_a_bad_record_is_named_or_listed(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    rows = [GOOD, GOOD | change]
    message = refused(tmp_path, rows, "auto")
    assert message.startswith("log.jsonl, line 2")
    assert fault in message
    assert read(tmp_path, rows, "auto", on_bad_row="skip").rows == {"used": 1, "bad": 1}


def test_a_table_of_text_of_flat_records_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Lists printed as Python text are no JSON."""
    table = "prompt,response-1,response-2,p.responses,p.responses.users\nq,x,y,['response-1'],['u']\n"
    with pytest.raises(ValueError, match=r"line 2: 'p\.responses' must be a list, as in a data set or JSON export"):
        read_csv(tmp_path, table, "auto")
