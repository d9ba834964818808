"""One line for what can be mended, and outputs that close, fill or may not be written to. No torch is loaded here."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prm.cli.output import CLOSED, USER_ERROR, errors_in_one_line, printing
from prm.errors import PrmError
from prm.io import disk
from prm.io.tables import write_json, write_jsonl
from tests.paths import ROOT

SCRIPT = """
import sys
from pathlib import Path
from prm.io.tables import write_text
from prm.cli.output import errors_in_one_line, printing
with errors_in_one_line():
    with printing():
        for i in range(100_000):
            print("a row", i)
    write_text(Path(sys.argv[1]), "written")
"""


def test_a_closed_pipe_ends_without_a_traceback_and_what_comes_after_is_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "a row 0\n"
        process.stdout.close()  # as `head -1` does
        assert process.stderr.read() == ""
        assert process.wait() == 0
    assert (tmp_path / "a").read_text() == "written"


def test_a_command_that_only_prints_ends_where_nobody_reads(tmp_path: Path) -> None:
    text = SCRIPT.replace("    with printing():\n", "    if True:\n")
    command = [sys.executable, "-c", text, str(tmp_path / "a")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == CLOSED
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_the_output_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == USER_ERROR
    assert done.stderr == "error: No space left on device\n"


@pytest.mark.parametrize("refused", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("when", ["write", "rename"])
def test_what_the_system_refuses_is_one_line_and_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: int, when: str
) -> None:
    """The old file stays; so does nothing else."""
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})

    def refuse(*_: object) -> None:
        raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr(disk, "_sync", refuse) if when == "write" else monkeypatch.setattr(disk.os, "replace", refuse)
    for write in (lambda: write_json(path, {"new": 2}), lambda: write_jsonl(path, [{"new": 2}])):
        with pytest.raises(SystemExit) as ended, errors_in_one_line():
            write()
        assert ended.value.code == USER_ERROR
        said = capsys.readouterr().err
        assert said == f"error: {path if when == 'rename' else tmp_path / '.results.json.tmp'}: cannot be written: " + (
            os.strerror(refused) + "\n"
        )
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert "old" in path.read_text()


def test_errors_that_are_not_the_systems_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), errors_in_one_line():
        print(1 // 0)
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        raise PrmError("x")
    assert ended.value.code == USER_ERROR
    with printing():
        pass


def test_what_is_logged_goes_where_stderr_is_by_then() -> None:
    """Two commands of one process, each with a stderr of its own; the second line was once written to the first."""
    code = """
import contextlib, io, logging
from prm.cli.output import log_to_stderr
for word in ("first", "second"):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        log_to_stderr()
        logging.getLogger("prm").info(word)
    print([word, said.getvalue()])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str([word, f"{word}\n"]) for word in ("first", "second")]
    assert done.stderr == ""
