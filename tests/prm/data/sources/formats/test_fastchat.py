"""Logs of a FastChat server, by hand."""

from pathlib import Path
from typing import Any

import pytest

from tests.prm.data.sources.formats.logs import said
from tests.prm.data.sources.logs import read, refused

KINDS = ["leftvote", "rightvote", "tievote", "bothbad_vote"]


def state(model: str, *texts: str | None, offset: int = 0) -> dict[str, Any]:
    roles = ["USER", "ASSISTANT"]
    messages = [[roles[i % 2], text] for i, text in enumerate(texts)]
    more = {"template_name": "vicuna", "system_message": "A chat.", "roles": roles, "offset": offset}
    return more | {"messages": messages, "conv_id": f"conv {model}", "model_name": model}


def row(kind: str, ip: str, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {"tstamp": 1700000000.25, "type": kind, "models": ["", ""], "states": [a, b], "ip": ip}


ROWS = [
    *(row(kind, f"10.0.0.{i}", state("m", "q", f"a{i}"), state("n", "q", f"b{i}")) for i, kind in enumerate(KINDS)),
    {"tstamp": 1.0, "type": "chat", "model": "m", "start": 1, "finish": 2, "state": state("m", "q", "a"), "ip": "x"},
    row("leftvote", "10.0.0.9", state("m", "q", "a", "r", None), state("n", "q", "b", "r", None)),
    row("leftvote", "10.0.0.9", state("m", "x", "y", "q", "a", offset=2), state("n", "x", "y", "q", "b", offset=2)),
    row("rightvote", "10.0.0.8", state("m", "q", "c"), state("n", "q", "d")),
    {"tstamp": 1.0, "type": "upvote", "model": "m", "state": state("m", "q", "a"), "ip": "x"},
    row("rightvote", "10.0.0.8", state("m", "r", "c"), state("n", "r", "d")),
]


def test_votes_by_hand(tmp_path: Path) -> None:
    """A turn without an answer, and the examples before `offset`, are not read; what is no vote on two is left out."""
    ROWS[5]["states"] = [state(m, "q", x, "r", None) for m, x in (("m", "a"), ("n", "b"))]
    rows = [ROWS[i] for i in range(10) if i != 5]
    found = read(tmp_path, rows, "auto")
    assert said(found) == [
        ("10.0.0.0", "q", "a0", "b0"),
        ("10.0.0.1", "q", "b1", "a1"),
        ("=10.0.0.2", "q", "a2", "b2"),
        ("=10.0.0.3", "q", "a3", "b3"),
        ("10.0.0.9", "q", "a", "b"),
        ("10.0.0.8", "q", "d", "c"),
        ("10.0.0.8", "r", "d", "c"),
    ]
    assert found.rows == {"used": 7, "no vote on two answers": 2}
    assert found.comparisons[0].conversation_id == "conv m"
    assert found.comparisons[0].time == 1700000000.25


@pytest.mark.parametrize(
    ("states", "fault"),
    [
        (None, "'states' must be a list of two conversations"),
        ([state("m", "q", "a")], "'states' must be a list of two conversations"),
        ([state("m", "q", "a"), {}], "'states' must hold objects with 'messages'"),
        ([state("m", "q", "a"), {"messages": ["q"]}], "'states' must hold 'messages' of a role and a text each"),
        ([state("m", "q", "a"), state("n", None)], "'conversation_b' is an empty list"),
        ([state("m", "q", "a"), state("n", "q", "b", "r", None)], "'conversation_b' must end with an answer"),
    ],
)
def test_a_bad_vote_is_named(tmp_path: Path, states: Any, fault: str) -> None:
    message = refused(tmp_path, [ROWS[0], ROWS[0] | {"states": states}], "auto")
    assert message.startswith(f"log.jsonl, line 2: {fault}")
