"""Every command and snippet of README and guide, on tiny data."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import prm.cli
import rerank.cli
from prm.comparison import Comparison
from prm.files import write_jsonl
from tests.conftest import WORDS

ROOT = Path(__file__).parent.parent
README, GUIDE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guide.md"))
TINY_TRAIN = ["--backbone.dtype", "float32", "--search.folds", "2", "--search.l2", "[1.0]", "--search.user_l2", "[1.0]"]
TINY_STEPS = ["--optim.epochs", "1", "--optim.batch_size", "8", "--optim.micro_batch_size", "8"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Lines of sh blocks that call prm or rerank, without comments."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("prm ", "rerank "))]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a log by anna and ben, as README's reader has it."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for i in range(10):
        pair = " ".join(WORDS[:4]), " ".join(WORDS[i : i + 6])
        rows += [Comparison("anna", f"How {i}?", *pair), Comparison("ben", f"How {i}?", *pair[::-1])]
    write_jsonl("log.jsonl", rows)
    return tmp_path


def test_readme_commands_and_python(home: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands(README)
    assert [command[:2] for command in found] == [
        ["prm", "train"],
        ["prm", "evaluate"],
        ["prm", "score"],
        ["rerank", "runs/mine"],
    ]
    for command in found:
        if command[:2] == ["prm", "train"]:
            prm.cli.main([*command[1:], "--backbone.name", tiny, *TINY_TRAIN])
        elif command[0] == "prm":
            prm.cli.main(command[1:])
        else:
            rerank.cli.main([*command[1:], "--generator", tiny, "--sampling.max_new_tokens", "4"])
    shown = capsys.readouterr().out
    assert "uniform, tuned" in shown
    assert "rewards for anna" in shown
    assert "ranked for anna" in shown
    snippet = blocks(README, "python")[0]
    names: dict[str, object] = {}
    exec(snippet, names)  # the text above the map must run as it stands
    scorer, prompt, answers = names["scorer"], names["prompt"], names["answers"]
    assert scorer.score(prompt, answers, user="anna").shape == (2,)  # type: ignore[attr-defined]
    assert scorer.score_users(prompt, answers, ["anna", None]).shape == (2, 2)  # type: ignore[attr-defined]
    assert scorer.score(prompt, answers).dtype == torch.float32  # type: ignore[attr-defined]
    assert len(snippet.strip().splitlines()) <= 10


def test_readme_row_is_a_comparison() -> None:
    row = json.loads(blocks(README, "json")[0])
    assert Comparison(**row).user_id == "anna"


def test_guide_config_trains(home: Path, tiny: str) -> None:
    config = blocks(GUIDE, "yaml")[0]
    first, *_ = config.splitlines()
    name = first.removeprefix("# prm train ")
    Path(name).write_text(config)
    prm.cli.main(["train", name, "--backbone.name", tiny, "--backbone.dtype", "float32", *TINY_STEPS])
    assert (home / "runs/soft-prompt/model.safetensors").is_file()


def test_readme_names_what_exists() -> None:
    for link in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / link).exists(), link
    for folder in re.findall(r"^\| `(\w+)/` \|", README, flags=re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
