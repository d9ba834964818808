"""The documentation's pages on policies, run on tiny data and a server on loopback."""

from pathlib import Path
from typing import Any

import pytest

from prm.data.comparison import Comparison
from tests.docs_pages import PAGES, make_home, name_of, run_page
from tests.endpoint_server import FakeEndpoint, likes_shorter
from tests.test_docs import RUN_HERE

RUN_THERE = (
    "sft-and-p-dpo",
    "dpo-trainer",
    "ppo",
    "ppo-trainer",
    "rloo-and-grpo",
    "compare-policies",
    "judges",
    "reward-in-other-trainers",
    "pairs",
)
HERE = [page for page in PAGES if page.stem in RUN_THERE]
LOG = [
    Comparison(user, f"{word}?", "a fox", "seven wizards")
    for user in ("anna", "ben", "carl")
    for word in ("why", "who", "how", "when", "where", "what")
]


@pytest.fixture
def home(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_home(tmp_path, tiny)
    return tmp_path


@pytest.mark.parametrize("page", HERE, ids=name_of)
def test_a_page_runs(
    page: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page.stem != "judges":
        names = run_page(page, monkeypatch)
        if page.stem == "sft-and-p-dpo":
            assert names["sampler"].users.ids == ["anna", "ben"]
            assert (home / "runs/merged/backbone/model.safetensors").is_file()
        return
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-nobody")
    names = {"cases": LOG[:4], "log": LOG, "arms": {"ours": ["a", "b", "c", "d"], "theirs": ["long"] * 4}}
    with FakeEndpoint(likes_shorter) as server:
        names = run_page(page, monkeypatch, names, {"https://api.openai.com/v1": server.url})
    assert "judging: 8 calls" in capsys.readouterr().out
    assert names["matrix"].rates["ours", "theirs"].wins == 4
    assert (home / "runs/judge.jsonl").is_file()
    assert (home / "runs/judged/judged.md").is_file()


def test_every_page_is_run_by_one_of_both_files() -> None:
    with_commands: list[Any] = [page for page in PAGES if page.parent.name == "how-to"]
    idle = {"audit.md", "resume.md", "several-processes.md", "paper-experiments.md", "start-from-a-reward-model.md"}
    idle |= {f"service-{what}.md" for what in ("keys-and-limits", "database", "in-a-container")}
    idle |= {"replicas.md", "teach-it-your-taste.md"}
    assert {page.name for page in with_commands} - {page.name for page in [*RUN_HERE, *HERE]} <= idle
