"""Every command and snippet of README and guide, on tiny data."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import policy.cli
import prm.cli.arguments
import rerank.cli
from prm.checkpoint.checkpoint import load
from prm.data.comparison import Comparison
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from tests.conftest import WORDS, read_log

ROOT = Path(__file__).parent.parent
README, GUIDE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guide.md"))
TINY_TRAIN = ["--backbone.dtype", "float32", "--search.folds", "2", "--search.l2", "[1.0]", "--search.user_l2", "[1.0]"]
TINY_STEPS = ["--optim.epochs", "1", "--optim.batch_size", "8", "--optim.micro_batch_size", "8"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Lines of sh blocks that call prm, rerank or policy, without comments."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("prm ", "rerank ", "policy "))]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the logs that README and guide speak of: pairs, ratings, picks, and new ratings by a newcomer."""
    monkeypatch.chdir(tmp_path)
    pairs, picks = [], ["annotator,prompt,answer_a,answer_b,winner,country"]
    ratings = {"log.csv": ["user_id,prompt,response,rating"], "new.csv": ["user_id,prompt,response,rating"]}
    for i in range(10):
        prompt, a, b = f"How {i}?", " ".join(WORDS[:4]), " ".join(WORDS[i : i + 6])
        pairs += [Comparison("anna", prompt, a, b), Comparison("ben", prompt, b, a)]
        picks += [f"anna,{prompt},{a},{b},answer_a,at", f"ben,{prompt},{a},{b},b,de"]
        ratings["log.csv"] += [
            f"anna,{prompt},{a},5",
            f"anna,{prompt},{b},2",
            f"ben,{prompt},{a},1",
            f"ben,{prompt},{b},4",
        ]
        ratings["new.csv"] += [f"zoe,{prompt},{a},5", f"zoe,{prompt},{b},1"]
    write_jsonl("log.jsonl", pairs)
    for name, lines in (ratings | {"picks.csv": picks, "given.txt": ["the king", "a fox"]}).items():
        Path(name).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_readme_commands_and_python(home: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands(README)
    assert [command[:2] for command in found] == [
        ["prm", "data"],
        ["prm", "train"],
        ["prm", "evaluate"],
        ["prm", "audit"],
        ["prm", "score"],
        ["rerank", "runs/mine"],
        ["rerank", "runs/mine"],
        ["prm", "adapt"],
    ]
    for command in found:
        if command[:2] == ["prm", "data"]:
            prm.cli.arguments.main([*command[1:], "--backbone", tiny])
        elif command[:2] == ["prm", "train"]:
            prm.cli.arguments.main([*command[1:], "--backbone.name", tiny, *TINY_TRAIN])
        elif command[0] == "prm":
            prm.cli.arguments.main(command[1:])
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


def test_readme_log_makes_a_comparison(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(blocks(README, "csv")[0])
    (found,) = read_log(path, "ratings")
    assert (found.user_id, found.chosen) == ("anna", "Freeze it in slices.")


def test_guide_configs_train(home: Path, tiny: str) -> None:
    configs = blocks(GUIDE, "yaml")
    assert len(configs) == 2
    for config in configs:
        first, *_ = config.splitlines()
        name = first.removeprefix("# prm train ")
        Path(name).write_text(config)
        quick = TINY_TRAIN if "soft_prompt" not in config else ["--backbone.dtype", "float32", *TINY_STEPS]
        prm.cli.arguments.main(["train", name, "--backbone.name", tiny, *quick])
    assert (home / "runs/soft-prompt/model.safetensors").is_file()
    assert (home / "runs/picks/model.safetensors").is_file()


def test_guide_goes_on_from_a_run_and_evaluates_other_kinds(home: Path, tiny: str) -> None:
    """The other commands of the guide, those in its sentences included."""
    prm.cli.arguments.main(
        ["train", "--data.path", "log.jsonl", "--output_dir", "runs/mine", "--backbone.name", tiny, *TINY_TRAIN]
    )
    (home / "new.jsonl").write_text((home / "log.jsonl").read_text().replace('"ben"', '"zoe"'))
    shutil.copytree(home / "runs/mine", home / "runs/before")
    adapt, go_on = commands(GUIDE)[:2]
    prm.cli.arguments.main(adapt[1:])
    assert load(home / "runs/mine").users.ids == ["anna", "ben", "zoe"]
    shutil.rmtree(home / "runs/mine")
    shutil.copytree(home / "runs/before", home / "runs/mine")
    prm.cli.arguments.main(go_on[1:])
    assert load(home / "runs/next").users.ids == ["anna", "ben", "zoe"]
    (home / "stars.csv").write_text((home / "log.csv").read_text())
    (inline,) = re.findall(r"`prm (evaluate RUN stars[^`]+)`", GUIDE)
    prm.cli.arguments.main(["runs/mine" if word == "RUN" else word for word in inline.split()])


def test_guide_how_sure(home: Path, tiny: str) -> None:
    """The snippet on uncertainty, as it stands, on a run that keeps it."""
    arguments = [
        "--data.path",
        "log.jsonl",
        "--output_dir",
        "runs/mine",
        "--users.kind",
        "bayes",
        "--search.folds",
        "2",
    ]
    prm.cli.arguments.main(["train", *arguments, "--backbone.name", tiny, *TINY_TRAIN])
    (snippet,) = (block for block in blocks(GUIDE, "python") if "return_std" in block)
    names: dict[str, Any] = {"scorer": Scorer.from_pretrained(home / "runs/mine")}
    names |= {"prompt": "what of the king?", "answers": ["the king", "a fox"]}
    exec(snippet, names)
    assert names["std"].shape == (2,)
    assert names["gains"].std[names["gains"].pick] == 0.0
    assert names["question"].place == 0


def test_guide_policies(home: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From supervised fine-tuning to answers for anna, as the guide has it."""
    every = commands(GUIDE)
    found = every[2:7] + every[14:]
    assert [command[:2] for command in found] == [
        ["policy", "sft"],
        ["policy", "dpo"],
        ["prm", "evaluate"],
        ["rerank", "runs/dpo"],
        ["policy", "merge"],
        ["prm", "train"],
        ["policy", "ppo"],
        ["rerank", "runs/rewards"],
    ]
    mains = {"policy": policy.cli.main, "prm": prm.cli.arguments.main, "rerank": rerank.cli.main}
    quick = {
        "sft": ["--backbone.name", tiny, "--backbone.dtype", "float32", *TINY_STEPS],
        "dpo": ["--backbone.dtype", "float32", *TINY_STEPS],
        "runs/dpo": ["--sampling.max_new_tokens", "4"],
        "train": TINY_TRAIN,
        "ppo": [
            "--backbone.dtype",
            "float32",
            "--optim.epochs",
            "1",
            "--ppo.max_steps",
            "1",
            "--ppo.rollout_batch_size",
            "16",
        ],
        "runs/rewards": ["--sampling.max_new_tokens", "4"],
    }
    quick["ppo"] += ["--ppo.max_new_tokens", "4", "--backbone.max_length", "64"]
    for name, *arguments in found:
        mains[name]([*arguments, *quick.get(arguments[0], [])])
    shown = capsys.readouterr().out
    assert "Accuracy" in shown
    assert "ranked for anna" in shown
    assert (home / "runs/merged/backbone/model.safetensors").is_file()
    assert json.loads((home / "runs/ppo/metrics.json").read_text())["shares_backbone"]
    snippet = next(block for block in blocks(GUIDE, "python") if "Sampler" in block)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert names["sampler"].users.ids == ["anna", "ben"]  # type: ignore[attr-defined]


def train_other(home: Path, backbone: str, *more: tuple[str, str]) -> None:
    """A reward model of the same people's judgements in another order, `runs/other`; others by log and folder."""
    lines = (home / "log.jsonl").read_text().splitlines(keepends=True)
    (home / "other.jsonl").write_text("".join(lines[::-1]))
    for log, folder in (*more, ("other.jsonl", "runs/other")):
        arguments = ["--data.path", log, "--output_dir", folder, "--backbone.name", backbone]
        prm.cli.arguments.main(["train", *arguments, *TINY_TRAIN])


def test_guide_learning_from_rewards(home: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    """From a reward to answers that win or lose, as the guide has it."""
    found = commands(GUIDE)[8:14]
    assert [command[:2] for command in found] == [
        ["prm", "train"],
        ["policy", "online"],
        ["rerank", "runs/mine"],
        ["policy", "sample"],
        ["policy", "sample"],
        ["policy", "judge"],
    ]
    shutil.copytree(tiny, home / "runs/sft")  # a language model like any other
    mains = {"policy": policy.cli.main, "prm": prm.cli.arguments.main, "rerank": rerank.cli.main}
    few = ["--sampling.max_new_tokens", "4"]
    online = ["--max_new_tokens", "4", "--num_eval_samples", "4", "--backbone.dtype", "float32", *TINY_STEPS]
    quick = {"train": ["--backbone.name", tiny, *TINY_TRAIN], "online": online, "runs/mine": few, "sample": few}
    for name, *arguments in found:
        if arguments[0] == "judge":
            train_other(home, tiny)
        mains[name]([*arguments, *quick.get(arguments[0], [])])
    shown = capsys.readouterr().out
    assert "next: policy sample runs/online" in shown
    assert "ranked for anna" in shown
    assert "first wins %" in shown
    assert (home / "runs/judged/judged.md").is_file()


def test_guide_what_n_buys(home: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command as it stands, judged by a run on the same people's judgements in another order."""
    train_other(home, tiny, ("log.jsonl", "runs/mine"))
    (home / "prompts.txt").write_text("what of the king?\nwhy?\n")
    name, *arguments = commands(GUIDE)[7]
    assert (name, arguments[0]) == ("rerank", "curve")
    rerank.cli.main([*arguments, "--generator", tiny, "--sampling.max_new_tokens", "4"])
    assert "k / (k + 1)" in capsys.readouterr().out
    for file in ("index.html", "curve.png", "curve.md", "curve.json", "pools.jsonl"):
        assert (home / "runs/mine/curve" / file).is_file()


def test_readme_names_what_exists() -> None:
    for link in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / link).exists(), link
    for folder in re.findall(r"^\| `(\w+)/` \|", README, flags=re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
