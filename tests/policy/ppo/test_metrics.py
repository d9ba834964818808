"""What PPO says of itself at its end."""

from pathlib import Path

import pytest

import policy.cli
from policy.ppo.metrics import StepMetrics, trend
from prm.io.disk import make_folder
from prm.io.tables import write_json, write_jsonl
from tests.tiny_runs import small_log

HISTORY: list[StepMetrics] = [
    {"step": 1, "reward": -0.125, "kl": 0.0, "length": 21.25},
    {"step": 2, "reward": 9.0, "kl": 9.0, "length": 9.0},
    {"step": 3, "reward": 0.5, "kl": 3.456, "length": 30.0},
]
SHOWN = ("1 to 3", "-0.12 to 0.50", "0.00 to 3.46", "21.2 to 30.0")


def test_the_first_and_the_last_step_by_hand() -> None:
    assert all(text in trend(HISTORY) for text in SHOWN)
    assert "9.0" not in trend(HISTORY)
    assert trend([]) == ""


def test_the_command_ends_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def trained(config: object, log: object = None) -> Path:
        make_folder(run)
        write_json(run / "metrics.json", {"history": HISTORY})
        return run

    write_jsonl(tmp_path / "log.jsonl", small_log())
    monkeypatch.setattr("policy.ppo.train.train_ppo", trained)
    monkeypatch.setattr("policy.cli.check_early", lambda *_: None)  # there is no reward
    policy.cli.main(["ppo", "--reward", "rm", "--data.path", str(tmp_path / "log.jsonl"), "--output_dir", str(run)])
    printed = capsys.readouterr().out
    assert all(text in printed for text in SHOWN)
