"""P-DPO in two processes under `accelerate launch` (gloo, CPU) is what one does with the doubled batch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from policy.cli import main
from policy.dpo_metrics import METRICS
from prm.io.tables import write_jsonl
from tests.planted import opposed_people
from tests.prm.training.test_distributed import LAUNCH, alone, run

CONFIG = """
data:
  path: log.jsonl
backbone:
  dtype: float32
users:
  num_virtual_tokens: 2
optim:
  epochs: 2
  micro_batch_size: 2
  eval_steps: 4
  early_stopping_patience: 50
"""


def logged(run: Path) -> dict[str, list[float]]:
    """What TensorBoard shows of a run, step by step."""
    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_two_processes_train_what_one_does_with_the_doubled_batch(tiny: str, tmp_path: Path) -> None:
    """With soft labels on some pairs, so that processes have different work in a step; weights differ, too."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    log = opposed_people(22, 0, people=2)
    log = [replace(c, weight=0.5 + (i % 5), p_chosen=0.8 if i % 3 == 0 else 1.0) for i, c in enumerate(log)]
    write_jsonl(tmp_path / "log.jsonl", log)
    flags = ["--backbone.name", tiny]
    one = [*flags, "--output_dir", "one", "--optim.batch_size", "8", "--optim.micro_batch_size", "4"]
    alone(tmp_path, main, *one, task="dpo")
    two = [*flags, "--output_dir", "two", "--optim.batch_size", "4"]
    shown = run(tmp_path, [*LAUNCH[:-1], "policy"], *two, task="dpo")
    assert shown.count("done") == 1  # one process speaks
    histories = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert histories[0]["steps"] == histories[1]["steps"] > 4
    for a, b in zip(histories[0]["history"], histories[1]["history"], strict=True):
        for name in ("objective", *METRICS):
            assert a[f"eval_{name}"] == pytest.approx(b[f"eval_{name}"], abs=1e-4), name
    first, second = (logged(tmp_path / name) for name in ("one", "two"))
    for name in METRICS:
        assert len(first[f"train/{name}"]) > 1
        assert first[f"train/{name}"] == pytest.approx(second[f"train/{name}"], abs=1e-4), name
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        weights = [load_file(tmp_path / folder / name) for folder in ("one", "two")]
        for key in weights[0]:
            torch.testing.assert_close(weights[0][key], weights[1][key], rtol=0, atol=2e-4)
