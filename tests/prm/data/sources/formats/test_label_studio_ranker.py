"""Rankings of Label Studio's Ranker tag in the published schema, by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from prm.config import FeedbackConfig
from prm.data.sources import read_feedback
from prm.errors import DataError
from tests.prm.data.sources.formats.logs import said
from tests.prm.data.sources.formats.test_label_studio import export

ITEMS = [{"id": name, "title": f"model {name}", "body": f"{name}'s answer"} for name in "abc"]


def ranked(order: Any, name: str = "rank") -> dict[str, Any]:
    buckets = order if isinstance(order, dict) else {name: order}
    return {"from_name": name, "to_name": "answers", "type": "ranker", "value": {"ranker": buckets}}


def task(number: int, by: str, *results: dict[str, Any], **data: Any) -> dict[str, Any]:
    done = {"id": number, "completed_by": by, "result": list(results), "created_at": "2024-05-01T10:00:00Z"}
    return {"id": number, "data": {"prompt": f"q{number}", "answers": ITEMS} | data, "annotations": [done]}


TASKS = [task(0, "ann", ranked(["c", "a", "b"])), task(1, "ben", ranked({"_": ["b"], "good": ["a", "c"]}))]
PAIRS = [("c", "a"), ("c", "b"), ("a", "b")]
SAID = [*(("ann", "q0", f"{x}'s answer", f"{y}'s answer") for x, y in PAIRS), ("ben", "q1", "a's answer", "c's answer")]


def test_a_ranking_becomes_responses_and_ranks(tmp_path: Path) -> None:
    """Best first; items that were left in the list behind one bucket are not ranked."""
    found = export(tmp_path, TASKS)
    assert sorted(said(found)) == sorted(SAID)
    assert found.read_as.startswith("read as 'label_studio'")
    assert "ranks from rank" in found.read_as


def test_json_min_and_csv_hold_the_same(tmp_path: Path) -> None:
    rows = [
        one["data"]
        | {"id": one["id"], "rank": [one["annotations"][0]["result"][0]["value"]], "annotation_id": one["id"]}
        | {"annotator": one["annotations"][0]["completed_by"], "lead_time": 4.2}
        for one in TASKS
    ]
    assert sorted(said(export(tmp_path, rows))) == sorted(SAID)
    path = tmp_path / "project-3.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            cells = {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
            writer.writerow(cells)
    assert sorted(said(read_feedback(FeedbackConfig(path=str(path))))) == sorted(SAID)


def test_items_without_a_body_have_their_titles(tmp_path: Path) -> None:
    items = [{"id": 7, "title": "seven", "body": "long"}, {"id": 8, "title": "eight"}]
    assert said(export(tmp_path, [task(0, "ann", ranked([8, 7]), answers=items)])) == [("ann", "q0", "eight", "seven")]


def test_a_ranking_beside_a_pick_is_read_by_name(tmp_path: Path) -> None:
    """Several buckets have no order among them, and the pick is what is left."""
    pick = {"from_name": "best", "to_name": "x", "type": "pairwise", "value": {"selected": "right"}}
    more = {"answer1": "x", "answer2": "y"}
    tasks = [task(0, "ann", ranked({"good": ["a"], "bad": ["b", "c"]}), pick, **more)]
    assert said(export(tmp_path, tasks)) == [("ann", "q0", "y", "x")]


BAD: list[tuple[dict[str, Any], str]] = [
    (task(1, "ann", ranked(["c", "z"])), "'rank' is ['c', 'z']: the task has no list with these ids"),
    (task(1, "ann", ranked(["c", "a"]), others=ITEMS), "the task has several lists with these ids"),
    (task(1, "ann", ranked(["c", "c"])), "the task has an item twice with these ids"),
    (task(1, "ann", ranked(["c", "a"]), responses=["x"]), "'rank' is of other items than 'responses'"),
    (task(1, "ann", ranked(["c", "a"]), ranked(["b", "a"], "second")), "'second' is of other items than 'responses'"),
    (task(1, "ann", ranked(["a", "b"]), answers=[{"id": "a"}, {"id": "b"}]), "not every item has a text under 'body'"),
]


@pytest.mark.parametrize(("bad", "fault"), BAD)
def test_a_bad_ranking_is_named(tmp_path: Path, bad: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError) as caught:
        export(tmp_path, [TASKS[0], bad])
    assert "(item 2), annotation 1" in str(caught.value) or "(item 2)" in str(caught.value)
    assert fault in str(caught.value)
