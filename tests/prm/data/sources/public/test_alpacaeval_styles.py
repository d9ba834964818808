"""AlpacaEval styles: a folder in its schema, and the real one against a count of the raw files."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prm.config import FeedbackConfig
from prm.data.sources import Feedback, read_feedback
from prm.errors import DataError
from tests.paths import SHARED

REAL = SHARED / "data" / "alpacaeval_styles"
ANSWERS = {"m": "one two", "n": "one two three four five", "m2": "one two"}
INSTRUCTION = {"prompt_id": 0, "dataset": "vicuna", "prompt": "Count.", "responses": ANSWERS}
PAIR = {"prompt_id": 0, "axis": "P2", "model_a": "n", "model_b": "m", "words_a": 5, "words_b": 2}
PAIR |= {"P2A_concise": "b", "P2B_informative": "a"}


def read(folder: Path, rows: list[Any], instructions: list[Any] | None = None, **settings: Any) -> Feedback:
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = "\n".join(map(json.dumps, [INSTRUCTION] if instructions is None else instructions))
    (folder / "responses.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return read_feedback(FeedbackConfig(path=str(folder), source="alpacaeval_styles", **settings))


def test_the_people_are_the_rows_own_keys_of_its_axis(tmp_path: Path) -> None:
    found = read(tmp_path, [PAIR | {"P1A_elementary": "a"}])
    assert [(c.user_id, c.prompt, c.chosen, c.rejected) for c in found.comparisons] == [
        ("P2A_concise", "Count.", ANSWERS["m"], ANSWERS["n"]),
        ("P2B_informative", "Count.", ANSWERS["n"], ANSWERS["m"]),
    ]
    assert [c.metadata for c in found.comparisons] == [{"axis": "P2", "dataset": "vicuna", "word_difference": 3}] * 2
    assert read(tmp_path, [PAIR, PAIR | {"model_a": "m2"}]).rows == {"used": 1, "the same text twice": 1}


BAD: list[tuple[Any, str]] = [
    (PAIR | {"prompt_id": 7}, "no such instruction: 7"),
    (PAIR | {"model_a": "z"}, "'responses.z' must be text, got null"),
    (PAIR | {"model_b": ["m"]}, "'model_b' must be text, got a list"),
    (PAIR | {"P2A_concise": "c"}, "'P2A_concise' must be 'a' or 'b', got 'c'"),
    (PAIR | {"axis": "P3"}, "no key begins with the axis 'P3'"),
    ({"prompt_id": 0}, "'axis' must be text, got null"),
    ([1], "expected a JSON object, got a list"),
]


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_a_bad_row_is_named_or_skipped(tmp_path: Path, bad: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, [PAIR, bad])
    assert str(caught.value).startswith(f"{tmp_path}/pairs.jsonl, line 2: {said}")
    assert read(tmp_path, [PAIR, bad], on_bad_row="skip").rows == {"used": 1, "bad": 1}


@pytest.mark.parametrize("bad", [INSTRUCTION | {"prompt": ""}, INSTRUCTION | {"responses": []}, {"prompt_id": 1}, 3])
def test_a_bad_instruction_is_named(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(DataError, match=r"responses\.jsonl\.gz, line 2: "):
        read(tmp_path, [PAIR], [INSTRUCTION, bad])


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="the data is not here")
def test_the_real_pairs_are_what_the_raw_file_says() -> None:
    raw = [json.loads(line) for line in (REAL / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    found = read_feedback(FeedbackConfig(path=str(REAL), source="alpacaeval_styles"))
    assert found.rows == {"used": len(raw)}
    assert Counter(c.user_id for c in found.comparisons) == {
        "P1A_elementary": 453,
        "P1B_expert": 453,
        "P2A_concise": 3218,
        "P2B_informative": 3218,
    }
    assert Counter(c.metadata["word_difference"] for c in found.comparisons) == Counter(
        abs(row["words_a"] - row["words_b"]) for row in raw for _ in range(2)
    )
    shorter = [len(c.chosen.split()) <= len(c.rejected.split()) for c in found.comparisons if "concise" in c.user_id]
    a_shorter = [row["words_a"] <= row["words_b"] for row in raw if row.get("P2A_concise") == "a"]
    b_shorter = [row["words_b"] <= row["words_a"] for row in raw if row.get("P2A_concise") == "b"]
    assert sum(shorter) == sum(a_shorter) + sum(b_shorter)
    assert len({c.prompt for c in found.comparisons}) == len({row["prompt_id"] for row in raw})
