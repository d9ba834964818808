"""Two processes under `accelerate launch` (gloo, CPU) train what one does with the doubled batch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prm.cli import main
from prm.evaluation.evaluate import evaluate_run
from prm.io.tables import write_jsonl
from tests.conftest import read_log
from tests.paths import ROOT
from tests.planted import opposed_people

# `--cpu` would want MPI; this starts two processes by torchrun, which talk by gloo where there is no GPU
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += [
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
    "-m",
    "prm",
]

CONFIG = """
train: lora
alpha: 0.5
data:
  path: log.jsonl
backbone:
  dtype: float32
users:
  num_virtual_tokens: 2
reward:
  form: soft_prompt
optim:
  epochs: 2
  micro_batch_size: 2
  eval_steps: 4
  early_stopping_patience: 50
"""


def run(folder: Path, command: list[str], *flags: str, task: str = "train") -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PRM_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(ROOT)  # this tree, not what may be installed
    done = subprocess.run(
        [*command, task, "run.yaml", *flags],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def alone(folder: Path, main: Callable[[list[str]], object], *flags: str, task: str = "train") -> None:
    """The same in this process: another one would take seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        main([task, "run.yaml", *flags])


@pytest.fixture
def home(tmp_path: Path, tiny: str) -> Path:
    (tmp_path / "run.yaml").write_text(CONFIG)
    log = [replace(c, weight=0.5 + (i % 5)) for i, c in enumerate(opposed_people(22, 0, people=2))]
    write_jsonl(tmp_path / "log.jsonl", log)
    return tmp_path


def test_two_processes_train_what_one_does_with_the_doubled_batch(home: Path, tiny: str) -> None:
    """Likelihood by likelihood, weight by weight and person by person; 38 pairs are no multiple of anything here."""
    flags = ["--backbone.name", tiny]
    alone(home, main, *flags, "--output_dir", "one", "--optim.batch_size", "8", "--optim.micro_batch_size", "4")
    shown = run(home, LAUNCH, *flags, "--output_dir", "two", "--optim.batch_size", "4")
    assert shown.count("done") == 1  # one process speaks
    histories = [json.loads((home / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert histories[0]["steps"] == histories[1]["steps"] > 4
    for a, b in zip(histories[0]["history"], histories[1]["history"], strict=True):
        assert a["step"] == b["step"]
        assert a["eval_nll"] == pytest.approx(b["eval_nll"], abs=1e-5)
        assert a["eval_accuracy"] == b["eval_accuracy"]
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        first, second = (load_file(home / run / name) for run in ("one", "two"))
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=2e-4, msg=f"{key}: {{}}".format)
    log = read_log(home / "log.jsonl")
    users = [evaluate_run(home / name, log).per_user for name in ("one", "two")]
    assert users[0].keys() == users[1].keys()
    for name, row in users[0].items():
        assert row == pytest.approx(users[1][name], abs=2e-4), name
    assert users[0].keys() == {"p0", "p1"}


def test_the_fast_path_is_one_process_work(home: Path, tiny: str) -> None:
    """The other one waits; the folder is whole and the same as without it."""
    flags = [
        "--backbone.name",
        tiny,
        "--train",
        "frozen",
        "--reward.form",
        "linear_head",
        "--users.num_virtual_tokens",
        "1",
    ]
    flags += ["--search.folds", "2", "--search.l2", "[1.0]", "--search.user_l2", "[1.0]"]
    run(home, LAUNCH, *flags, "--output_dir", "two")
    alone(home, main, *flags, "--output_dir", "one")
    first, second = (load_file(home / run / "model.safetensors") for run in ("one", "two"))
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-6)
    assert not list(home.glob("*.partial"))
