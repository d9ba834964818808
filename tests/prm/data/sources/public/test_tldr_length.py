"""TL;DR by length: a folder in its schema, and the real one against a count of the raw file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prm.config import FeedbackConfig, TldrConfig
from prm.data.sources import Feedback, read_feedback
from prm.data.sources.public.tldr import draw_tastes
from prm.errors import DataError
from tests.paths import SHARED

REAL = SHARED / "data" / "tldr"
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


def test_unknown_users_come_after_the_known_and_are_marked(tmp_path: Path) -> None:
    rows = [post("a b", "c")]
    ten = read(tmp_path, rows).comparisons
    more = read(tmp_path, rows, tldr=TldrConfig(num_users=10, num_unseen_users=30)).comparisons
    assert more[:10] == ten
    assert [c.user_id for c in more] == [f"length_{i}" for i in range(40)]
    assert [c.metadata.get("split") for c in more] == [None] * 10 + ["unseen"] * 30
    people = read(tmp_path, rows, tldr=TldrConfig(num_users=40)).comparisons
    assert not any("split" in c.metadata for c in people)
    assert [(c.user_id, c.chosen) for c in people] == [(c.user_id, c.chosen) for c in more]


@pytest.mark.parametrize("people", [10, 11, 40])
def test_people_are_the_papers_workers(tmp_path: Path, people: int) -> None:
    """length_1 is its worker 1 and so on; length_0 is worker 10. All together have the tastes of so many workers."""
    found = read(tmp_path, [post("a b", "c")], tldr=TldrConfig(num_users=people)).comparisons
    shorter = [c.metadata["prefers"] == "shorter" for c in found]
    drawn = draw_tastes(people)
    assert sorted(shorter) == sorted(drawn)
    assert shorter[1:10] == drawn[:9]
    assert shorter[10:] == drawn[10:]
    few = read(tmp_path, [post("a b", "c")], tldr=TldrConfig(num_users=3)).comparisons
    assert few == found[:3]


def test_a_prompt_may_be_the_title_alone(tmp_path: Path) -> None:
    whole = "SUBREDDIT: r/pets\n\nTITLE: My cat\n\nPOST: It is\n\nPOST: a cat.\n\nTL;DR:"
    title = TldrConfig(prompt="title")
    (prompt,) = {c.prompt for c in read(tmp_path, [post("a b", "c", whole)], tldr=title).comparisons}
    assert prompt == "SUBREDDIT: r/pets\n\nTITLE: My cat\n\nTL;DR:"
    with pytest.raises(DataError, match=r"line 1: 'prompt'.*'POST:'"):
        read(tmp_path, [post("a b", "c")], tldr=title)


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


def test_users_say_what_they_like_and_unknown_ones_in_other_words(tmp_path: Path) -> None:
    """Every text goes with one taste; nobody learnt from says what a stranger says."""
    found = read(
        tmp_path, [post("a b c", "a b")], tldr=TldrConfig(num_users=10, num_unseen_users=30, user_texts=True)
    ).comparisons
    says = {(c.user_text, c.metadata["prefers"], c.metadata.get("split")) for c in found}
    assert len({text for text, *_ in says}) == len(says) == 7 + 3 + 4 + 4
    assert all(text for text, *_ in says)
    silent = read(tmp_path, [post("a b c", "a b")], tldr=TldrConfig(num_users=10, num_unseen_users=30)).comparisons
    assert {c.user_text for c in silent} == {""}
    assert [(c.user_id, c.chosen) for c in silent] == [(c.user_id, c.chosen) for c in found]
