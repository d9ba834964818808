"""UKPConvArg1: a folder in its schema, and the real one against a count of the raw files."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison
from prm.data.sources import Feedback, read_feedback
from prm.errors import DataError
from tests.paths import SHARED

REAL = SHARED / "data" / "ukpconvarg1"
TEXTS = {"a": "cats purr", "b": "dogs bark", "c": "dogs bark"}
ROW = {"pair_id": "1", "user_id": "w1", "debate": "pets", "title": "Cats?", "stance": "Yes"}


def judged(first: str, second: str, choice: str, **more: Any) -> dict[str, Any]:
    return ROW | {"arg1_id": first, "arg2_id": second, "choice": choice} | more


def read(folder: Path, rows: list[Any], texts: list[Any] | None = None, **settings: Any) -> Feedback:
    texts = [{"arg_id": k, "text": v} for k, v in TEXTS.items()] if texts is None else texts
    (folder / "arguments.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (folder / "comparisons.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return read_feedback(FeedbackConfig(path=str(folder), source="ukpconvarg1", **settings))


def test_choices_become_comparisons(tmp_path: Path) -> None:
    rows = [judged("a", "b", "a1"), judged("a", "b", "a2"), judged("b", "a", "equal"), judged("b", "c", "a1")]
    found = read(tmp_path, [*rows, rows[0]])
    more: dict[str, Any] = {"metadata": {"debate": "pets"}}
    assert found.comparisons == [
        Comparison("w1", "Cats?\nYes", "cats purr", "dogs bark", chosen_first=True, **more),
        Comparison("w1", "Cats?\nYes", "dogs bark", "cats purr", chosen_first=False, **more),
        Comparison("w1", "Cats?\nYes", "dogs bark", "cats purr", p_chosen=0.5, chosen_first=True, **more),
    ]
    assert found.rows == {"used": 3, "the same text twice": 1, "said twice": 1}


BAD: list[tuple[Any, str]] = [
    (judged("a", "z", "a1"), "no such argument or choice: 'z'"),
    (judged("a", "b", "a3"), "no such argument or choice: 'a3'"),
    (judged("a", "b", "a1", user_id=7), "'user_id' must be text, got int 7"),
    (judged("a", "b", "a1", user_id=" "), "'user_id' is empty"),
    (judged("a", "b", "a1", title=None), "'title' must be text, got null"),
    (judged("a", "b", "a1", arg1_id=["a"]), "'arg1_id' must be text, got a list"),
    (judged("a", "b", "a1") | {"choice": {}}, "'choice' must be text, got an object"),
    (ROW, "'arg1_id' is empty"),
    (3, "expected a JSON object, got int 3"),
]


@pytest.mark.parametrize(("row", "said"), BAD)
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, row: Any, said: str) -> None:
    rows = [judged("a", "b", "a1"), row]
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows)
    assert str(caught.value).startswith(f"{tmp_path}/comparisons.jsonl.gz, line 2: {said}")
    found = read(tmp_path, rows, on_bad_row="skip")
    assert found.rows == {"used": 1, "bad": 1}
    assert found.skipped[0]["row"] == row or found.skipped[0]["row"] == json.dumps(row)


@pytest.mark.parametrize("argument", [{"arg_id": "z"}, {"arg_id": ["z"], "text": "x"}, {"arg_id": "z", "text": " "}, 3])
def test_a_bad_argument_is_named(tmp_path: Path, argument: Any) -> None:
    with pytest.raises(DataError, match=r"arguments\.jsonl, line 2: "):
        read(tmp_path, [judged("a", "b", "a1")], [{"arg_id": "a", "text": "x"}, argument])


def test_a_folder_without_the_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"arguments\.jsonl"):
        read_feedback(FeedbackConfig(path=str(tmp_path), source="ukpconvarg1"))


PAIR = """<?xml version="1.0"?>
<list>
  <annotatedArgumentPair>
    <id>arg1_arg2</id>
    <arg1><author>a</author><stance>TV</stance><text>You get news
in the tube.</text><id>arg1</id></arg1>
    <arg2><author>b</author><stance>TV</stance><text>I like &lt;b&gt;TV&lt;/b&gt;.</text><id>arg2</id></arg2>
    <debateMetaData><title>TV or Books</title></debateMetaData>
    <mTurkAssignments>
      <mTurkAssignment><turkID>A1</turkID><value>a1</value></mTurkAssignment>
      <mTurkAssignment><turkID>A2</turkID><value>a2</value></mTurkAssignment>
      <mTurkAssignment><turkID>A3</turkID><value>equal</value></mTurkAssignment>
    </mTurkAssignments>
    <goldLabel>a2</goldLabel>
  </annotatedArgumentPair>
</list>
"""


@pytest.mark.parametrize("place", ["data/UKPConvArg1-full-XML", "UKPConvArg1-full-XML", "."])
def test_the_corpus_is_read_as_published(tmp_path: Path, place: str) -> None:
    """In the authors' repository, in its `data`, or alone; a comparison each, files in order of their names."""
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tv_tv.xml").write_text(PAIR)
    (folder / "dogs_yes.xml").write_text(PAIR.replace("A1", "B1").replace("arg1_", "x_"))
    found = read_feedback(FeedbackConfig(path=str(tmp_path), source="ukpconvarg1"))
    prompt, texts = "TV or Books\nTV", ("You get news in the tube.", "I like <b>TV</b>.")
    more: dict[str, Any] = {"metadata": {"debate": "tv_tv"}}
    assert found.comparisons[3:] == [
        Comparison("A1", prompt, *texts, chosen_first=True, **more),
        Comparison("A2", prompt, *texts[::-1], chosen_first=False, **more),
        Comparison("A3", prompt, *texts, p_chosen=0.5, chosen_first=True, **more),
    ]
    assert [c.user_id for c in found.comparisons[:3]] == ["B1", "A2", "A3"]
    assert found.comparisons[0].origin.endswith("dogs_yes.xml, pair x_arg2")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<value>a2</value>", "<value>a4</value>", "tv.xml, pair arg1_arg2: no such argument or choice: 'a4'"),
        ("<turkID>A2</turkID>", "", "tv.xml, pair arg1_arg2: 'user_id' is empty"),
        ("</list>", "", "tv.xml: not valid XML: no element found"),
    ],
)
def test_a_fault_of_the_corpus_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in PAIR
    (tmp_path / "tv.xml").write_text(PAIR.replace(old, new))
    with pytest.raises(DataError, match=re.escape(said)):
        read_feedback(FeedbackConfig(path=str(tmp_path), source="ukpconvarg1"))


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="the data is not here")
def test_the_real_log_is_what_its_raw_files_say() -> None:
    texts = {}
    for line in (REAL / "arguments.jsonl").read_text(encoding="utf-8").splitlines():
        argument = json.loads(line)
        texts[argument["arg_id"]] = argument["text"]
    with gzip.open(REAL / "comparisons.jsonl.gz", "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    kept = {
        (r["user_id"], r["title"], r["stance"], texts[r["arg1_id"]], texts[r["arg2_id"]], r["choice"], r["debate"])
        for r in raw
        if texts[r["arg1_id"]] != texts[r["arg2_id"]]
    }
    same = sum(texts[r["arg1_id"]] == texts[r["arg2_id"]] for r in raw)
    found = read_feedback(FeedbackConfig(path=str(REAL), source="ukpconvarg1"))
    assert sum(found.rows.values()) == len(raw) == 51_052
    assert len(found.comparisons) == len(kept) == 50_987
    assert found.rows["the same text twice"] == same
    assert found.rows["said twice"] == len(raw) - len(kept) - same
    choices = Counter(row[5] for row in kept)
    assert sum(c.is_tie for c in found.comparisons) == choices["equal"] == 11_622
    assert sum(bool(c.chosen_first) and not c.is_tie for c in found.comparisons) == choices["a1"]
    dropped = read_feedback(FeedbackConfig(path=str(REAL), source="ukpconvarg1", ties="drop"))
    assert len(dropped.comparisons) == choices["a1"] + choices["a2"]
    assert dropped.pairs["tied"] == choices["equal"]
