"""Runs with users behind a frozen text: killed ones, runs that go on from them, several processes, evaluation."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import prm.steps
from prm import kept_reader, key_store
from prm.adapt import adapt_run
from prm.config import OptimConfig, RewardConfig, TrainConfig
from prm.errors import PrmError
from prm.evaluate import evaluate_run
from prm.files import write_jsonl
from prm.key_store import store_folder
from prm.run import train
from prm.scorer import Scorer
from tests.planted import opposed_people
from tests.prm.test_behind import FEW_STEPS, config_of, log_of
from tests.prm.test_distributed import CONFIG as IN_FRONT
from tests.prm.test_distributed import LAUNCH, run
from tests.prm.test_trainer import Kill

ADAPTER = "adapter/adapter_model.safetensors"


def test_a_killed_run_resumes_to_the_bit(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 5 on, the last state, with the texts that the killed run kept."""
    optim = OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=2, eval_steps=5, patience=50)
    config = log_of(config_of(tiny, tmp_path, optim=optim, alpha=0.5))
    whole = train(replace(config, output_dir=str(tmp_path / "whole")))
    built, read, steps = prm.steps.build_trainer, list[int](), list[int]()

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    def build(*callbacks: TrainerCallback) -> Callable[..., Any]:
        def with_callbacks(*args: Any) -> Any:
            trainer = built(*args)
            for callback in callbacks:
                trainer.add_callback(callback)
            return trainer

        return with_callbacks

    monkeypatch.setattr(prm.steps, "build_trainer", build(Kill(7)))
    with pytest.raises(InterruptedError):
        train(config)
    monkeypatch.setattr(prm.steps, "build_trainer", build(Steps()))
    monkeypatch.setattr(key_store, "read_keys", lambda *args: read.append(1))
    resumed = train(config)
    assert read == []
    assert steps[0] == 6
    for name in ("model.safetensors", ADAPTER):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name


@pytest.mark.parametrize("mode", ["lora", "frozen"])
def test_going_on_from_a_run(tiny: str, tmp_path: Path, mode: str) -> None:
    """With LoRA everything goes on learning; on a frozen backbone nobody moves but who is new in the log."""
    first = train(log_of(config_of(tiny, tmp_path, optim=FEW_STEPS, train=mode, alpha=0.5)))
    before = Scorer.from_pretrained(first)
    log = [replace(c, user_id="zoe") for c in opposed_people(60, 5, people=1)]
    write_jsonl(tmp_path / "new.jsonl", log)
    start = TrainConfig(start_from=str(first), output_dir=str(tmp_path / "next"), train=mode)  # type: ignore[arg-type]
    start.data.path = str(tmp_path / "new.jsonl")
    second = train(start)
    assert json.loads((second / "config.json").read_text())["reward"]["frozen_text"] is True
    after = Scorer.from_pretrained(second)
    assert store_folder(before.model) == store_folder(after.model)  # type: ignore[arg-type]
    texts = [log[0].chosen, log[0].rejected]
    margins = [s.margin_batch([c.prompt for c in log], *sides(log), ["zoe"] * len(log)) for s in (before, after)]
    assert margins[1].sigmoid().log().mean() > margins[0].sigmoid().log().mean()
    everybody = [*before.users, None]
    scores = [s.score_users("why?", texts, everybody) for s in (before, after)]
    assert torch.equal(*scores) is (mode == "frozen")
    if mode == "lora":
        assert not all(map(torch.equal, *(load_file(r / ADAPTER).values() for r in (first, second))))
    with pytest.raises(PrmError, match=r"reward.*leave it out"):
        train(replace(start, output_dir=str(tmp_path / "other"), reward=RewardConfig("soft_prompt", place="front")))


def sides(log: list[Any]) -> tuple[list[str], list[str]]:
    return [c.chosen for c in log], [c.rejected for c in log]


def test_evaluation_and_a_new_person(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation gives what scores give, and writes no keys; taking somebody in changes nobody else's numbers."""
    trained = train(log_of(config_of(tiny, tmp_path, optim=FEW_STEPS)))
    test, keys = opposed_people(40, 8, people=4), tmp_path / "cache" / "keys"
    there = sorted(keys.rglob("*"))
    found = evaluate_run(trained, test).row("personal").accuracy.value
    assert sorted(keys.rglob("*")) == there
    margins = Scorer.from_pretrained(trained).margin_batch(
        [c.prompt for c in test], *sides(test), [c.user_id for c in test]
    )
    decided = torch.tensor([c.p_chosen != 0.5 for c in test])
    assert found == pytest.approx((margins[decided] > 0).float().mean().item())
    log = [replace(c, user_id="zoe") for c in opposed_people(40, 5, people=1)]
    states = {p: load_file(trained / p) for p in ("model.safetensors", ADAPTER)}
    adapt_run(trained, log, tmp_path / "next")
    rows = {name: len(t) for name, t in states["model.safetensors"].items()}
    for path, state in states.items():
        for name, tensor in load_file(tmp_path / "next" / path).items():
            assert torch.equal(tensor[: rows[name]] if path == "model.safetensors" else tensor, state[name]), name
    read: list[int] = []
    for module in (key_store, kept_reader):
        monkeypatch.setattr(module, "read_keys", lambda *args: read.append(1))
    taken_in = evaluate_run(tmp_path / "next", log)
    assert read == []  # all of these texts were kept
    assert taken_in.row("personal").nll.value < taken_in.row("generic user").nll.value  # type: ignore[union-attr]


CONFIG = IN_FRONT.replace("  form: soft_prompt", "  form: soft_prompt\n  place: behind\n  frozen_text: true")


def test_two_processes_train_what_one_does_with_the_doubled_batch(tmp_path: Path, tiny: str) -> None:
    """One reads the texts; the other waits, and finds them."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    write_jsonl(tmp_path / "log.jsonl", opposed_people(22, 0, people=2))
    flags = ["--backbone.name", tiny, "--output_dir"]
    run(tmp_path, LAUNCH, *flags, "two", "--optim.batch_size", "4")
    keys = [path for path in (tmp_path / "cache" / "keys").rglob("*") if path.is_file()]
    assert len(keys) == 1  # two that read would have written two
    one = [sys.executable, "-m", "prm.cli"]
    run(tmp_path, one, *flags, "one", "--optim.batch_size", "8", "--optim.micro_batch_size", "4")
    assert [path for path in (tmp_path / "cache" / "keys").rglob("*") if path.is_file()] == keys
    for name in ("model.safetensors", ADAPTER):
        first, second = (load_file(tmp_path / folder / name) for folder in ("one", "two"))
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=2e-4, msg=lambda m, key=key: f"{key}: {m}")
