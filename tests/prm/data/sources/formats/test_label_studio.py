"""Label Studio's exports of pairwise tasks (JSON, JSON-MIN, CSV) in the published schema, by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from prm.config import FeedbackConfig
from prm.data.sources import Feedback, read_feedback
from prm.errors import DataError
from tests.prm.data.sources.formats.logs import said


def annotation(number: int, by: Any, selected: str | None, **more: Any) -> dict[str, Any]:
    results = [
        {"id": "x", "from_name": "why", "to_name": "prompt", "type": "textarea", "value": {"text": ["since"]}},
        {
            "id": "y", "from_name": "comparison", "to_name": "answer1,answer2", "type": "pairwise",
            "value": {"selected": selected},
        },
    ]  # fmt: skip
    return {
        "id": number, "completed_by": by, "result": results if selected else [], "was_cancelled": False,
        "ground_truth": False, "created_at": f"2024-05-0{number % 9 + 1}T10:00:00.5Z", "lead_time": 4.2,
    } | more  # fmt: skip


def task(number: int, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    fields = {"prompt": f"q{number}", "answer1": f"l{number}", "answer2": f"r{number}"} | data
    return {"id": number, "data": fields, "annotations": list(annotations), "predictions": [], "project": 3}


TASKS = [
    task(0, annotation(1, 7, "left")),
    task(1, annotation(2, 7, "right")),
    task(2, annotation(3, 7, "left"), annotation(4, 8, "right"), annotation(5, 9, "left", was_cancelled=True)),
    task(3),
    task(4, annotation(6, 9, "right")),
    *(task(i, annotation(i + 3, 8, "left" if i % 2 else "right")) for i in range(5, 10)),
]
SAID = [
    ("7", "q0", "l0", "r0"),
    ("7", "q1", "r1", "l1"),
    ("7", "q2", "l2", "r2"),
    ("8", "q2", "r2", "l2"),
    ("9", "q4", "r4", "l4"),
    ("8", "q5", "l5", "r5"),
    ("8", "q6", "r6", "l6"),
    ("8", "q7", "l7", "r7"),
    ("8", "q8", "r8", "l8"),
    ("8", "q9", "l9", "r9"),
]


def export(folder: Path, tasks: Any, indent: int | None = 2, **settings: Any) -> Feedback:
    path = folder / "project-3.json"
    path.write_text(json.dumps(tasks, indent=indent))
    return read_feedback(FeedbackConfig(path=str(path), **settings))


@pytest.mark.parametrize("indent", [None, 2])
def test_tasks_by_hand(tmp_path: Path, indent: int | None) -> None:
    """An annotation is a row of the account; those that were cancelled, and tasks without any, are left out."""
    found = export(tmp_path, TASKS, indent)
    assert said(found) == SAID
    assert found.rows == {"used": 10, "annotation cancelled": 1, "task without annotation": 1}
    assert found.comparisons[0].time == "2024-05-02T10:00:00.5Z"
    assert found.comparisons[3].origin.endswith("(item 3), annotation 2")
    assert found.read_as.startswith("read as 'label_studio'")
    assert "'left' is answer1, 'right' is answer2" in found.read_as
    assert found.notes == ["columns that are not read: why"]


def flat(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of JSON-MIN, as Label Studio's converter writes them."""
    rows = []
    for one in tasks:
        for done in one["annotations"]:
            picked = [r["value"] for r in done["result"] if r["from_name"] == "comparison"]
            rows.append(
                one["data"]
                | {"id": one["id"], "why": "since", "comparison": picked}
                | {"annotator": done["completed_by"], "annotation_id": done["id"]}
                | {"created_at": done["created_at"], "updated_at": done["created_at"], "lead_time": 4.2}
            )
    return rows


def test_json_min_and_csv_hold_the_same(tmp_path: Path) -> None:
    rows = [row for row in flat(TASKS) if row["annotation_id"] != 5]
    assert said(export(tmp_path, rows)) == SAID
    path = tmp_path / "project-3.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, sorted({*rows[0], "was_cancelled"}), quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"comparison": json.dumps(row["comparison"]), "was_cancelled": False})
        writer.writerow(rows[0] | {"comparison": "", "was_cancelled": True})
    found = read_feedback(FeedbackConfig(path=str(path)))
    assert said(found) == SAID
    assert found.rows == {"used": 10, "annotation cancelled": 1}


def test_an_account_is_known_by_its_e_mail(tmp_path: Path) -> None:
    by = {"id": 5, "email": "eve@example.org", "first_name": ""}
    tasks = [task(0, annotation(1, by, "left")), task(1, annotation(2, by | {"email": ""}, "left"))]
    assert said(export(tmp_path, tasks[:1])) == [("eve@example.org", "q0", "l0", "r0")]
    assert said(export(tmp_path, tasks[1:])) == [("5", "q1", "l1", "r1")]


def test_ids_of_two_kinds_in_one_column_are_refused_as_ever(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(item 5\), annotation 1: 'user_id' is text here but not in .*annotation 1"):
        export(tmp_path, [*TASKS[:4], task(4, annotation(6, "eve", "right"))])


def test_choices_are_read_too(tmp_path: Path) -> None:
    """With answers under any names, and a tie."""
    tasks = []
    for i, choice in enumerate(["Response A", "Response B", "Tie", "A is better", "b"]):
        result = [{"from_name": "verdict", "to_name": "p", "type": "choices", "value": {"choices": [choice]}}]
        data = {"question": f"q{i}", "response_a": "x", "response_b": "y"}
        done = {"id": i, "completed_by": "ann", "result": result}
        tasks.append({"id": i, "data": data, "annotations": [done]})
    found = export(tmp_path, tasks)
    pairs = [("x", "y"), ("y", "x"), ("x", "y"), ("x", "y"), ("y", "x")]
    assert said(found) == [("=ann" if i == 2 else "ann", f"q{i}", *pair) for i, pair in enumerate(pairs)]


def test_two_questions_that_may_be_the_pick_are_refused(tmp_path: Path) -> None:
    second = {"from_name": "safer", "to_name": "x", "type": "pairwise", "value": {"selected": "right"}}
    tasks = [task(0, annotation(1, 7, "left"))]
    tasks[0]["annotations"][0]["result"].append(second)
    with pytest.raises(DataError, match=r"may be 'comparison' or 'safer': say which with 'data\.columns\.chosen'"):
        export(tmp_path, tasks)
    assert said(export(tmp_path, tasks, columns={"chosen": "safer"})) == [("7", "q0", "r0", "l0")]


BAD: list[tuple[Any, str]] = [
    ({"data": "q"}, "'data' must be an object and 'annotations' a list, got text and a list"),
    ({"annotations": None}, "'data' must be an object and 'annotations' a list, got an object (dict) and null (None)"),
    ({"annotations": ["x"]}, "annotation 1 must be an object with a list 'result'"),
    ({"annotations": [annotation(1, 7, "up")]}, "'chosen' (column 'comparison') is 'up', which is not known"),
    ({"annotations": [annotation(1, 7, None)]}, "field 'chosen' (column 'comparison') is missing"),
    ({"annotations": [annotation(1, None, "left")]}, "field 'user_id' (column 'annotator') is missing: it is empty"),
    ({"data": {"prompt": "q", "answer1": "x", "answer2": None}}, "'responses' holds 1 response"),
    ({"data": {"prompt": "", "answer1": "x", "answer2": "y"}}, "'prompt' is empty"),
    (
        {"data": {"prompt": "q", "answer1": "x", "answer2": "y", "why": "z"}},
        "annotation 1: 'why' is the name of a field",
    ),
]


@pytest.mark.parametrize(("change", "fault"), BAD)
def test_a_bad_task_is_named_or_listed(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    tasks = [TASKS[0], TASKS[1] | change]
    with pytest.raises(DataError) as caught:
        export(tmp_path, tasks)
    assert "(item 2)" in str(caught.value)
    assert fault in str(caught.value)
    found = export(tmp_path, tasks, on_bad_row="skip")
    assert found.rows == {"used": 1, "bad": 1}
    assert fault in found.skipped[0]["fault"]


def test_columns_of_the_tasks_may_be_named(tmp_path: Path) -> None:
    tasks = [task(i, annotation(1 + i, 7, "left"), topic="tea") for i in range(2)]
    for one in tasks:
        one["data"] = {name.replace("answer1", "one").replace("answer2", "two"): v for name, v in one["data"].items()}
    with pytest.raises(DataError, match="'one'"):
        export(tmp_path, tasks)
    found = export(tmp_path, tasks, columns={"responses": ["two", "one"]}, metadata=["topic"])
    assert said(found) == [("7", "q0", "r0", "l0"), ("7", "q1", "r1", "l1")]
    assert found.comparisons[0].metadata == {"topic": "tea"}
