"""Examples that are scripts run as they stand, on the embedded model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT


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
