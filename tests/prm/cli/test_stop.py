"""Ctrl-C ends a command in one line, which says whether the same command resumes it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prm import train
from prm.cli import main
from prm.cli.output import STOPPED, errors_in_one_line
from prm.io.interrupts import resumable
from prm.io.tables import write_jsonl
from tests.planted import opposed_people


@pytest.mark.parametrize(("where", "begun"), [("_fit", True), ("split_data", False)])
def test_a_run_that_was_begun_is_said_to_be_resumable(
    tiny: str,
    tmp_path: Path,
    where: str,
    begun: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the command in its one line, from Python in the exception."""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    log, run = opposed_people(4, 0), str(tmp_path / "run")
    write_jsonl(tmp_path / "log.jsonl", log)
    monkeypatch.setattr(f"prm.training.run.{where}", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data.path", str(tmp_path / "log.jsonl"), "--output_dir", run, "--backbone.name", tiny])
    assert stop.value.code == STOPPED
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("stopped")
    assert ("same command" in said) is begun
    with pytest.raises(KeyboardInterrupt) as interrupt:
        train(log, output_dir=run, backbone={"name": tiny}, overwrite=True)
    assert ("same command" in str(interrupt.value)) is begun


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), resumable():
        print(1 // 0)
    with pytest.raises(SystemExit) as stop, errors_in_one_line(), resumable(lambda: False):
        raise KeyboardInterrupt
    assert stop.value.code == STOPPED


def test_a_training_is_stopped_and_resumed(tiny: str, tmp_path: Path) -> None:
    """By a signal, with a second checkpoint begun: the first is whole."""
    write_jsonl(tmp_path / "log.jsonl", opposed_people(12, 0))
    flags = "--reward.form soft_prompt --backbone.dtype float32 --optim.epochs 400 --optim.eval_steps 1"
    flags += " --optim.early_stopping_patience 1000000 --output_dir run --data.path log.jsonl"
    # a job in the background ignores the signal, and hands that down
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    entry = f"{heed}; from prm.cli import main; main()"
    command = [sys.executable, "-c", entry, "train", "--backbone.name", tiny, *flags.split()]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start() as process:
        until = time.monotonic() + 300
        while len(list(tmp_path.glob("run.partial/trainer/checkpoint-*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == STOPPED
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("stopped; the same command")
    with start() as process:
        assert process.stderr is not None
        resumed = next((line for line in process.stderr if "resuming the run from" in line), "")
        process.kill()
    assert "checkpoint-" in resumed
