"""What holds for every format: whatever stands in a row, it is read, left out, or refused by file and line."""

import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.config import FeedbackConfig, LogFormat
from prm.data.sources import read_feedback
from prm.data.sources.formats import FORMATS
from prm.errors import DataError
from tests.prm.data.sources.formats import test_arena, test_argilla, test_fastchat, test_label_studio, test_openai
from tests.prm.data.sources.formats.test_argilla import LABELS, RANKINGS
from tests.prm.data.sources.test_sources import FUZZ, JSON

ROWS: list[dict[str, Any]] = [
    test_arena.ARENA[5],
    test_arena.judgement(81, "expert_1", 2, "tie"),
    test_arena.release_140k(1, "both_bad", "x", "y"),
    {"prompt": '["q"]', "response_a": '["x"]', "response_b": '["y"]', **dict.fromkeys(test_arena.ONE_HOT, 0)},
    test_fastchat.ROWS[0],
    test_openai.example(1, "hi", "hello"),
    test_label_studio.TASKS[2],
    test_label_studio.flat(test_label_studio.TASKS)[0],
    test_argilla.nested(1, LABELS[1]),
    test_argilla.flat(1, LABELS[1]),
    test_argilla.first_sdk(1, [("u", RANKINGS[0], "submitted")]),
    test_argilla.api(1, LABELS[3]),
]


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all values within a row."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, part in inner for deeper in paths_in(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The row with another value at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


@st.composite
def rows_of_a_format(draw: Any) -> list[Any]:
    good = draw(st.sampled_from(ROWS))
    rows = [good]
    for _ in range(draw(st.integers(1, 3))):
        rows.append(changed(good, draw(st.sampled_from(paths_in(good)[1:])), draw(JSON)))
    return draw(st.permutations(rows))


@FUZZ
@given(rows_of_a_format(), st.sampled_from(["auto", *FORMATS]), st.booleans(), st.sampled_from(["jsonl", "json"]))
def test_arbitrary_values_are_read_or_refused(rows: list[Any], source: str, anonymous: bool, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"log.{ending}"
        path.write_text(json.dumps(rows, indent=1) if ending == "json" else "\n".join(map(json.dumps, rows)))
        for on_bad_row in ("skip", "stop"):
            config: dict[str, Any] = {"source": source, "anonymous": anonymous, "on_bad_row": on_bad_row}
            try:
                found = read_feedback(FeedbackConfig(path=str(path), **config))
            except DataError as error:
                assert str(error).startswith(str(path)), str(error)  # noqa: PT017
                continue
            assert found.rows["used"] >= 1
            assert found.pairs["kept"] == len(found.comparisons)
            assert found.rows["bad"] == len(found.skipped)
            assert on_bad_row == "skip" or not found.skipped


def test_every_format_has_its_setting() -> None:
    assert set(FORMATS) == set(get_args(LogFormat))
    for name, one in FORMATS.items():
        assert FeedbackConfig(path="x", source=name).source == name  # type: ignore[arg-type]
        assert one.TITLE
        assert one.SAYS


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_row_of_a_format_is_of_that_one_alone(tmp_path: Path, number: int) -> None:
    names = ROWS[number].keys()
    assert len([name for name, one in FORMATS.items() if one.is_like(names)]) == 1
