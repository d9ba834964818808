"""TL;DR by length: a folder in its schema, and the real one against a count of the raw file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prm.config import FeedbackConfig, TldrConfig
from prm.errors import DataError
from prm.sources import Feedback, read_feedback

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "tldr"
SHORTER = {"length_4", "length_5", "length_6"}


def read(folder: Path, rows: list[Any], **settings: Any) -> Feedback:
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_feedback(FeedbackConfig(path=str(folder), source="tldr_length", **settings))


def post(model: Any, reference: Any, prompt: Any = "post") -> dict[str, Any]:
    return {"id": 1, "prompt": prompt, "response_model": model, "response_reference": reference}


def test_three_of_ten_people_prefer_fewer_words(tmp_path: Path) -> None:
    """Words, not letters: the shorter text here has more letters."""
    found = read(tmp_path, [post("internationalisation everywhere", "a b c d"), post("x y", "longwinded word", "p")])
    assert len(found.comparisons) == 10
    assert {c.user_id for c in found.comparisons if c.chosen.startswith("inter")} == SHORTER
    assert {c.user_id for c in found.comparisons} == {f"length_{i}" for i in range(10)}
    for c in found.comparisons:
        prefers = "shorter" if c.user_id in SHORTER else "longer"
        assert c.metadata == {"longer": "reference", "word_difference": 2, "prefers": prefers}
    assert found.rows == {"used": 1, "as many words in both": 1}
    assert found.pairs == {"kept": 10}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (post(None, "a b"), "'response_model' must be text, got null"),
        (post("a", 3), "'response_reference' must be text, got int 3"),
        (post("a", "b c", []), "'prompt' must be text, got a list"),
        (post("a", " "), "'response_reference' is empty"),
        ({"prompt": "p", "response_model": "a"}, "'response_reference' must be text, got null"),
        ([1], "expected a JSON object, got a list"),
    ],
)
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, row: Any, said: str) -> None:
    rows = [post("a", "b c"), row]
    with pytest.raises(DataError) as caught:
        read(tmp_path, rows)
    assert str(caught.value).startswith(f"{tmp_path}/pairs.jsonl, line 2: {said}")
    assert read(tmp_path, rows, on_bad_row="skip").rows == {"used": 1, "bad": 1}


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="the data is not here")
def test_the_real_posts_are_what_the_raw_file_says() -> None:
    posts = [json.loads(line) for line in (REAL / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    lengths = [(len(p["response_model"].split()), len(p["response_reference"].split())) for p in posts]
    differ = sum(a != b for a, b in lengths)
    found = read_feedback(FeedbackConfig(path=str(REAL), source="tldr_length"))
    assert found.rows == {"used": differ, "as many words in both": len(posts) - differ}
    assert (differ, len(found.comparisons)) == (1436, 14_360)
    assert set(Counter(c.user_id for c in found.comparisons).values()) == {1436}
    for c in found.comparisons:
        assert (len(c.chosen.split()) < len(c.rejected.split())) == (c.user_id in SHORTER)
    longer = sum(a > b for a, b in lengths)
    assert sum(c.metadata["longer"] == "model" for c in found.comparisons) == 10 * longer


def test_people_say_what_they_like_and_strangers_in_other_words(tmp_path: Path) -> None:
    """Every text goes with one taste; nobody learnt from says what a stranger says."""
    found = read(tmp_path, [post("a b c", "a b")], tldr=TldrConfig(people=10, strangers=30, texts=True)).comparisons
    says = {(c.user_text, c.metadata["prefers"], c.metadata.get("part")) for c in found}
    assert len({text for text, *_ in says}) == len(says) == 7 + 3 + 4 + 4
    assert all(text for text, *_ in says)
    silent = read(tmp_path, [post("a b c", "a b")], tldr=TldrConfig(people=10, strangers=30)).comparisons
    assert {c.user_text for c in silent} == {""}
    assert [(c.user_id, c.chosen) for c in silent] == [(c.user_id, c.chosen) for c in found]
