"""One bar in place of what transformers prints: its figures are those that are logged, and nothing else is printed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PrinterCallback, ProgressCallback, Trainer

from prm.io.tables import write_jsonl
from prm.training.trainers import progress_bar as module
from prm.training.trainers.step_trainer import run_trainer
from tests.tiny_runs import config_of, small_log, train_any


class Bar:
    """Takes down what a bar shows."""

    made: list["Bar"]

    def __init__(self, total: int, desc: str, unit: str, initial: int = 0):
        self.total, self.desc, self.unit, self.n, self.closed = total, desc, unit, initial, False
        self.postfix: dict[str, str] = {}
        self.seen: list[dict[str, str]] = []
        Bar.made.append(self)

    def update(self, n: int = 1) -> None:
        self.n += n

    def set_postfix(self, values: dict[str, str], refresh: bool) -> None:
        self.postfix = dict(values)
        self.seen.append(self.postfix)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> type[Bar]:
    Bar.made = []
    monkeypatch.setattr(module, "progress", Bar)
    return Bar


@pytest.mark.parametrize(("kind", "stopped_by"), [("soft", "nll"), ("dpo", "objective")])
def test_the_bar_shows_what_is_logged(
    kind: str,
    stopped_by: str,
    backbone_of: Callable[..., str],
    bars: type[Bar],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_jsonl(tmp_path / "log.jsonl", small_log(12))
    config = config_of(kind, backbone_of("llama"), tmp_path)
    capfd.readouterr()
    run = train_any(kind, config)
    out, err = capfd.readouterr()
    assert out == ""
    assert not [line for line in err.splitlines() if line.startswith("{") or "%|" in line]
    training, *evaluations = [bar for bar in bars.made if bar.desc in ("training", "evaluating")]
    metrics = json.loads((run / "metrics.json").read_text())
    assert (training.unit, training.n, training.total) == ("step", metrics["steps"], metrics["steps"])
    history = [f"{entry[f'eval_{stopped_by}']:.3g}" for entry in metrics["history"]]
    assert list(dict.fromkeys(s["validation"] for s in training.seen if "validation" in s)) == list(
        dict.fromkeys(history)
    )
    assert "loss" in training.postfix
    assert len(evaluations) == len(history)
    assert all(bar.closed and bar.n == bar.total for bar in (training, *evaluations))


def test_a_bar_is_closed_where_training_is_interrupted(
    backbone_of: Callable[..., str], bars: type[Bar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an evaluation, with its bar below; and the trainer has neither of transformers' bars."""
    write_jsonl(tmp_path / "log.jsonl", small_log(12))
    trainers: list[Trainer] = []

    def noted(trainer: Trainer) -> dict[str, Any]:
        trainers.append(trainer)
        return run_trainer(trainer)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prm.training.gradient_training.run_trainer", noted)
    monkeypatch.setattr("prm.training.trainers.reward_trainer.validation_metrics", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_any("soft", config_of("soft", backbone_of("llama"), tmp_path))
    assert [bar.desc for bar in bars.made if bar.desc in ("training", "evaluating")] == ["training", "evaluating"]
    assert all(bar.closed for bar in bars.made if bar.desc in ("training", "evaluating"))
    (trainer,) = trainers
    assert not [c for c in trainer.callback_handler.callbacks if isinstance(c, PrinterCallback | ProgressCallback)]
