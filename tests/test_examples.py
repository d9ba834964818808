"""Examples that are scripts run as they stand, on the embedded model or on a tiny one."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from prm import Scorer
from prm.checkpoint.checkpoint import read_users
from prm.data.arguments import Prompts, Texts, Users
from prm.io.tables import write_jsonl
from rerank import Reranker
from tests.endpoint_server import FakeEndpoint, choices
from tests.paths import ROOT
from tests.planted import opposed_people
from tests.tiny_runs import config_of, train_any


def test_the_best_of_an_openai_server(
    backbone_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, with a server on loopback; each user gets the response that the model prefers for them."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(20, 0, people=2))
    run = train_any("linear", config_of("linear", backbone_of("llama"), tmp_path))
    said = [("an old king", "stop"), ("seven lazy dogs", "length"), ("mix potions", "stop")]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    with FakeEndpoint(lambda body, number: choices([said[body["seed"] % 3]])) as server:  # ignores n
        monkeypatch.setattr(sys, "argv", ["best_of_n", str(run), server.url])
        runpy.run_path(str(ROOT / "examples/best_of_n_openai_server.py"), run_name="__main__")
        assert {body["model"] for body in server.bodies} == {"tiny"}
    printed, reranker = capsys.readouterr().out.splitlines(), Reranker.from_pretrained(run)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [row["user_id"] for row in rows] == ["p0", "p1"] * 2
    for row in rows:
        ranked = [r["text"] for r in reranker.rank(row["prompt"], [text for text, _ in said], row["user_id"])]
        first, *_ = printed[printed.index(row["prompt"]) + 1 + int(row["user_id"][1]) :]
        assert first.startswith(f"  {row['user_id']}: {ranked[0]}{' (cut)' if ranked[0] == said[1][0] else ''}  [")
        ranked.remove("seven lazy dogs")  # a pair has no response that was cut
        assert [row["chosen"], row["rejected"]] == ranked


@pytest.mark.model
def test_an_own_log_gives_each_user_their_response(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/own_log.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    responses = dict(
        line.split(": ", 1) for line in result.stdout.splitlines() if line.startswith(("anna", "ben", "zoe"))
    )
    assert "do it today" in responses["anna"]
    assert responses["ben"] == responses["zoe"]
    assert "step by step" in responses["ben"]
    assert (tmp_path / "runs/own_log/config.json").is_file()


@pytest.fixture
def tiny_default(backbone_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded model is a tiny one, and the working directory is empty."""
    folder = Path(backbone_of("llama"))
    monkeypatch.setattr("prm.models.backbones.embedded_model", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_clicks_move_a_new_user_alone(tiny_default: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples/new_user.py"), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    before, *_, after = [float(line.split(" = ")[1][:4]) for line in printed if "P(short)" in line]
    assert abs(before - 0.5) < 0.2
    assert after > 0.7  # she takes the short one in nine of ten
    assert Scorer.from_pretrained("runs/with_zoe").judgements("zoe") == 10


@pytest.mark.parametrize(("script", "run"), [("p_dpo", "runs/p_dpo"), ("ppo", "runs/ppo")])
def test_policies_are_trained_in_python(script: str, run: str, tiny_default: Path) -> None:
    runpy.run_path(str(ROOT / f"examples/{script}.py"), run_name="__main__")
    assert len(read_users(Path(run)).ids) == 8


def test_grpo_gets_the_reward_of_each_rows_user(
    tiny_default: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewarded: list[str | None] = []
    score_batch = Scorer.score_batch

    def watched(self: Scorer, prompts: Prompts, responses: Texts, users: Users, texts: Texts | None = None) -> Tensor:
        rewarded.extend(users)
        return score_batch(self, prompts, responses, users, texts)

    monkeypatch.setattr(Scorer, "score_batch", watched)
    runpy.run_path(str(ROOT / "examples/grpo.py"), run_name="__main__")
    assert rewarded
    assert None not in rewarded
    assert "mean reward" in capsys.readouterr().out


@pytest.mark.model
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells in one namespace, as the kernel runs them; what it says of its users is what was simulated."""
    cells = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    assert len(cells) < 30
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    scorer, responses = names["scorer"], names["responses"]
    assert isinstance(scorer, Scorer)
    assert isinstance(responses, list)
    short, long = responses
    short_first = [scorer.prefer("How do I boil an egg?", short, long, user=f"user {i}") > 0.5 for i in range(12)]
    assert short_first == [True, False] * 6
