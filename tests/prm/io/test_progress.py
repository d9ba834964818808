"""Long work shows how far it is, on whatever stderr is."""

import io
import os
import pty
import sys
import time

import pytest

from prm.io import progress as module
from prm.io.progress import progress, without_bars
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AFTER", 0.3)


def work(seconds: float) -> None:
    bar = progress(total=8, desc="sampling 3 answers", unit="token", mininterval=0.0)
    for _ in range(8):
        time.sleep(seconds / 8)
        bar.update()
    bar.close()


@pytest.mark.parametrize("seconds", [0.0, 0.7])
def test_a_terminal_that_does_not_know_its_width_shows_a_bar(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A new pseudo-terminal says 0 columns, on which tqdm alone draws nothing."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        work(seconds)
        print("end", file=terminal, flush=True)
        shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert ("sampling 3 answers: " in shown) == (seconds > 0)


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 0), (0.7, 1)])
def test_a_log_gets_one_line_that_says_how_much_there_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seconds: float, lines: int
) -> None:
    """The next would come after a minute."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with caplog.at_level("INFO"):
        work(seconds)
    assert len(caplog.messages) == lines
    assert all(
        text.startswith("sampling 3 answers: ") and " of 8 tokens, 00:00 gone" in text for text in caplog.messages
    )
    assert stderr.getvalue() == ""


@pytest.mark.parametrize("silent", [False, True])
def test_a_notebook_shows_a_bar_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, silent: bool
) -> None:
    """Its stderr says that it is no terminal."""
    stderr = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", stderr)
    with caplog.at_level("INFO"), without_bars(silent), without_bars(False):
        work(0.7)
    assert caplog.messages == []
    assert ("\rsampling 3 answers: " in stderr.getvalue()) is not silent


def test_no_part_of_the_project_has_a_bar_of_its_own() -> None:
    root = ROOT
    sources = [*root.glob("prm/**/*.py"), *root.glob("rerank/**/*.py"), *root.glob("policy/**/*.py")]
    assert [f.name for f in sources if "from tqdm" in f.read_text(encoding="utf-8")] == ["progress.py"]
