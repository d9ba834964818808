"""Jester: a folder in its schema, and the real one against a count of the raw files."""

import csv
import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prm.config import FeedbackConfig
from prm.data.sources import Feedback, read_feedback
from prm.data.sources.public.jester import PROMPT
from prm.errors import DataError
from tests.paths import SHARED
from tests.prm.data.sources.logs import won

REAL = SHARED / "data" / "jester5k"
HEADER = "user_id,joke_id,rating\n"


def read(folder: Path, ratings: str, jokes: list[Any] | None = None, **settings: Any) -> Feedback:
    jokes = [{"joke_id": f"j{i}", "text": f"joke {i}"} for i in range(1, 4)] if jokes is None else jokes
    (folder / "jokes.jsonl").write_text("\n".join(map(json.dumps, jokes)))
    (folder / "ratings.csv.gz").write_bytes(gzip.compress((HEADER + ratings).encode()))
    return read_feedback(FeedbackConfig(path=str(folder), source="jester", **settings))


def test_jokes_whose_ratings_are_apart_are_pairs(tmp_path: Path) -> None:
    found = read(tmp_path, "u,j1,-9.5\nu,j2,1.07\nu,j3,3.07\nv,j1,3\n", min_rating_difference=2.0)
    assert won(found) == [("joke 2", "joke 1"), ("joke 3", "joke 1"), ("joke 3", "joke 2")]
    assert {(c.user_id, c.prompt) for c in found.comparisons} == {("u", PROMPT)}
    assert found.rows == {"used": 3, "no other response of that user to that prompt": 1}
    assert won(read(tmp_path, "u,j1,-9.5\nu,j2,1.07\nu,j3,3.06\n", min_rating_difference=2.0))[1:] == [
        ("joke 3", "joke 1")
    ]


def test_ratings_can_be_standardised(tmp_path: Path) -> None:
    """u: -1, 0, 1 are 1.22 deviations apart each; v: -1, 0, 10 are 0.20 and 2.01."""
    log = "u,j1,-1\nu,j2,0\nu,j3,1\nv,j1,-1\nv,j2,0\nv,j3,10\n"
    found = read(tmp_path, log, min_rating_difference=1.2, standardise=True)
    assert Counter(c.user_id for c in found.comparisons) == {"u": 3, "v": 2}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("u,j9,1", "no such joke: 'j9'"), ("u,j1,", "'rating' must be text, got null"), (",j1,1", "'user_id' must be"),
        ("u,j1,nan", "'rating' must be a finite number"), ("u,j1,inf", "'rating' must be a finite number"),
        ("u,j1,good", "could not convert string to float: 'good'"), ("u,j1", "2 fields, but the header names 3"),
        ("  ,j1,1", "'user_id' is empty"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, line: str, said: str) -> None:
    log = f"u,j1,1\n{line}\nu,j2,2\n"
    with pytest.raises(DataError) as caught:
        read(tmp_path, log)
    assert str(caught.value).startswith(f"{tmp_path}/ratings.csv.gz, line 3: {said}")
    found = read(tmp_path, log, on_bad_row="skip")
    assert found.rows == {"used": 2, "bad": 1}


@pytest.mark.parametrize("joke", [{"joke_id": "j2"}, {"joke_id": {}, "text": "x"}, {"joke_id": "j2", "text": ""}, []])
def test_a_bad_joke_is_named(tmp_path: Path, joke: Any) -> None:
    with pytest.raises(DataError, match=r"jokes\.jsonl, line 2: "):
        read(tmp_path, "u,j1,1\n", [{"joke_id": "j1", "text": "x"}, joke])


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="the data is not here")
def test_the_real_log_is_what_its_raw_files_say() -> None:
    lines = (REAL / "jokes.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {joke["joke_id"]: joke["text"] for joke in map(json.loads, lines)}
    ratings: dict[str, dict[str, int]] = defaultdict(dict)  # in hundredths: exact
    with gzip.open(REAL / "ratings.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        ratings[row["user_id"]][texts[row["joke_id"]]] = round(float(row["rating"]) * 100)
    found = read_feedback(FeedbackConfig(path=str(REAL), source="jester", min_rating_difference=2.0, max_pairs=2))
    assert sum(found.rows.values()) == len(rows) == 290_720
    assert sum(found.pairs.values()) == sum(len(r) * (len(r) - 1) // 2 for r in ratings.values())
    close = 0
    for given in ratings.values():
        scores = np.array([*given.values()])
        close += (int((np.abs(scores[:, None] - scores) < 200).sum()) - len(scores)) // 2
    assert found.pairs["equal or too close"] == close
    assert found.pairs["kept"] == len(found.comparisons)
    times: Counter[tuple[str, str]] = Counter()
    for c in found.comparisons:
        assert ratings[c.user_id][c.chosen] - ratings[c.user_id][c.rejected] >= 200
        times.update([(c.user_id, c.chosen), (c.user_id, c.rejected)])
    assert max(times.values()) == 2
    assert len(times) == found.rows["used"]
