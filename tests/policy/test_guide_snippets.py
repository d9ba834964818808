"""The guide's Python, as it stands, on tiny data and a server on loopback."""

from pathlib import Path
from typing import Any

import pytest

from prm.data.comparison import Comparison
from tests.policy.judging.server import FakeEndpoint, likes_shorter
from tests.prm.scoring.test_scorer import train_small
from tests.test_readme import GUIDE, blocks

SNIPPETS = [text for text in blocks(GUIDE, "python") if "from policy." in text]
LOG = [
    Comparison(user, f"{word}?", "a fox", "seven wizards")
    for user in ("anna", "ben", "carl")
    for word in ("why", "who", "how", "when", "where", "what")
]


def test_there_are_as_many_as_the_guide_promises() -> None:
    assert len(SNIPPETS) == 2


def test_rewards(tmp_path: Path, tiny: str) -> None:
    (text,) = (text for text in SNIPPETS if "Scorer" in text)
    run = train_small(tmp_path, tiny, "linear", LOG)
    names: dict[str, Any] = {}
    exec(text.replace("runs/mine", str(run)), names)
    assert len(names["reward"](prompts=["why?"], completions=["a fox"], user_id=["anna"])) == 1


def test_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody")
    monkeypatch.chdir(tmp_path)
    (text,) = (text for text in SNIPPETS if "LLMJudge" in text)
    names = {"cases": LOG[:4], "log": LOG, "arms": {"ours": ["a", "b", "c", "d"], "theirs": ["long"] * 4}}
    with FakeEndpoint(likes_shorter) as server:
        exec(text.replace("https://api.openai.com/v1", server.url), names)
    printed = capsys.readouterr().out
    assert "judging: 8 calls" in printed
    assert "100.0" in printed
    assert names["matrix"].rates["ours", "theirs"].wins == 4  # type: ignore[attr-defined]
    assert (tmp_path / "runs/judge.jsonl").is_file()
