"""OpenAI's preference fine-tuning files, by hand."""

from pathlib import Path
from typing import Any

import pytest

from tests.prm.data.sources.formats.logs import said, turns
from tests.prm.data.sources.logs import read, refused


def example(number: int, *before: str) -> dict[str, Any]:
    return {
        "input": {"messages": turns(*before, f"q{number}"), "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": f"good {number}"}],
        "non_preferred_output": [{"role": "assistant", "content": f"bad {number}"}],
    }


def test_pairs_by_hand(tmp_path: Path) -> None:
    rows = [*(example(i) for i in range(8)), example(8, "hi", "hello"), example(9)]
    rows[9]["input"]["messages"].insert(0, {"role": "developer", "content": "be brief"})
    found = read(tmp_path, rows, "auto", anonymous=True)
    expected: list[Any] = [("anonymous", f"q{i}", f"good {i}", f"bad {i}") for i in range(8)]
    expected.append(("anonymous", [("user", "hi"), ("assistant", "hello"), ("user", "q8")], "good 8", "bad 8"))
    expected.append(("anonymous", [("system", "be brief"), ("user", "q9")], "good 9", "bad 9"))
    assert said(found) == expected
    assert found.rows == {"used": 10}
    assert found.read_as.startswith("read as 'openai'")
    assert found.notes == []
    message = refused(tmp_path, rows, "auto")
    assert all(part in message for part in ("line 1: field 'user_id' is missing", "'data.anonymous: true'"))
    named = read(tmp_path, [row | {"annotator": f"p{i % 2}"} for i, row in enumerate(rows)], "auto")
    assert [c.user_id for c in named.comparisons] == ["p0", "p1"] * 5


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"input": "q"}, "'input' must be an object with 'messages'"),
        ({"input": {"messages": []}}, "'input.messages' is an empty list"),
        ({"input": {"messages": turns("q", "a")}}, "'prompt' must end with a message of role 'user'"),
        ({"preferred_output": None}, "'preferred_output' must be text or a list of messages, got null"),
        ({"preferred_output": turns("q", "a")}, "'preferred_output' must hold one message, of role 'assistant'"),
        ({"non_preferred_output": turns("q")}, "'non_preferred_output' must hold one message, of role 'assistant'"),
        (
            {"non_preferred_output": [{"role": "assistant", "content": ""}]},
            "'non_preferred_output[0].content' is empty",
        ),
    ],
)
def test_a_bad_example_is_named(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    message = refused(tmp_path, [example(1), example(2) | change], "auto", anonymous=True)
    assert message.startswith(f"log.jsonl, line 2: {fault}")
