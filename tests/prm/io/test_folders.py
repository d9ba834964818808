"""Folders that appear at once or not at all, one command at a time in each."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prm.errors import PrmError
from prm.io import disk, folders, locks
from prm.io.folders import atomic_folder, publish, recover, work_folder, working_in
from prm.io.locks import BusyError, locked
from tests.paths import ROOT

HOLD = "import sys\nfrom pathlib import Path\nfrom prm.io.locks import locked\n"
HOLD += "with locked(Path(sys.argv[2])):\n    print('held', flush=True)\n    sys.stdin.read()\n"


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in the folder."""
    command = [sys.executable, "-c", HOLD, "adapt", str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def run_with(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    return folder


def test_a_folder_is_one_commands_at_a_time_and_a_killed_ones_is_free(tmp_path: Path) -> None:
    run = run_with(tmp_path / "runs" / "mine", "x")
    (tmp_path / "link").symlink_to(run)
    with held_elsewhere(tmp_path / "link") as other:
        for name in (run, tmp_path / "link"):
            with pytest.raises(BusyError) as raised, working_in(name):
                pass
            said = str(raised.value)
            assert str(run) in said
            assert f"process {other.pid}" in said
            assert "adapt" in said
            assert "\n" not in said
        with working_in(tmp_path / "runs" / "other"):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with working_in(run) as real:
            assert real == run
    assert [p.name for p in run.parent.iterdir()] == ["mine"]


def test_the_same_thread_may_enter_again_and_another_may_not(tmp_path: Path) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            with working_in(tmp_path / "run"):
                said.append("entered")
        except BusyError as error:
            said.append(str(error))

    with working_in(tmp_path / "run"):
        with working_in(tmp_path / "run"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert "another thread" in said[0]
    assert said[1] == "entered"
    assert not list(tmp_path.iterdir())


def test_waiting_for_another_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    inside = threading.Event()
    monkeypatch.setattr(locks, "_PAUSE", 0.01)

    def work() -> None:
        with locked(tmp_path / "run"):
            inside.set()
            threading.Event().wait(0.1)
            done.append("first")

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    with locked(tmp_path / "run", wait=True):
        done.append("second")
    thread.join()
    assert done == ["first", "second"]


@pytest.mark.parametrize("refused", [errno.EACCES, errno.EROFS])
def test_where_nobody_may_write_nothing_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    def no(*_: object) -> int:
        raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr(locks.os, "open", no)
    with working_in(run_with(tmp_path / "run", "x")) as real:
        assert (real / "a.txt").is_file()


def test_what_a_killed_command_left_is_put_right(tmp_path: Path) -> None:
    """Its half-made folder goes; so does the old one beside the new one, or it comes back where there is no new one."""
    run = run_with(tmp_path / "run", "new")
    run_with(tmp_path / ".run.old", "old")
    run_with(tmp_path / ".run.new", "half")
    with working_in(run):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    run.rename(tmp_path / ".run.old")
    with working_in(run):
        assert (run / "a.txt").read_text() == "new"


def test_whoever_reads_does_not_put_back_what_another_command_is_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two renames of a live command the folder is not there, and what waits beside it is in use."""
    run = run_with(tmp_path / "run", "old")
    seen: list[str] = []
    between = threading.Event()

    def reader() -> None:
        recover(run)
        seen.append((run / "a.txt").read_text())

    thread = threading.Thread(target=reader)
    rename = disk.rename

    def slow(source: Path, target: Path) -> None:
        if target == run:
            thread.start()
            between.wait(0.1)
        rename(source, target)

    monkeypatch.setattr(folders, "rename", slow)
    with working_in(run), atomic_folder(run) as temporary:
        (temporary / "a.txt").write_text("new")
    thread.join()
    assert seen == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_cannot_replace_the_old_one_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, new = run_with(tmp_path / "run", "old"), run_with(tmp_path / "new", "new")
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if source == new:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(disk.os, "replace", refuse)
    with pytest.raises(PrmError, match=r"run: .*No space left on device"):
        publish(new, run)
    assert (run / "a.txt").read_text() == "old"
    assert not (tmp_path / ".run.old").exists()


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", "old")
    with pytest.raises(FileNotFoundError), atomic_folder(run) as temporary:
        (temporary / "no" / "a.txt").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (run / "a.txt").read_text() == "old"


def test_a_link_to_a_folder_stays_one_and_leads_to_the_new_folder(tmp_path: Path) -> None:
    run = run_with(tmp_path / "elsewhere" / "run", "old")
    link = tmp_path / "link"
    link.symlink_to(run)
    with working_in(link) as real, atomic_folder(link) as temporary:
        assert temporary.parent == run.parent
        (temporary / "a.txt").write_text("new")
    assert link.is_symlink()
    assert real == run
    assert (run / "a.txt").read_text() == (link / "a.txt").read_text() == "new"
    assert work_folder(link) == run.with_name("run.partial")
    assert [p.name for p in run.parent.iterdir()] == ["run"]


def test_a_name_of_255_bytes_is_written_and_a_longer_one_refused_in_a_line(tmp_path: Path) -> None:
    names = ["n" * 255, "ö" * 127]
    for name in names:
        with working_in(tmp_path / name), atomic_folder(tmp_path / name) as temporary:
            disk.write_whole(temporary / name, lambda path: path.write_text("x"))
        assert work_folder(tmp_path / name).parent == tmp_path
        assert len(os.fsencode(work_folder(tmp_path / name).name)) <= 255
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted([*names, *names])
    with pytest.raises((PrmError, OSError), match="File name too long"), working_in(tmp_path / ("m" * 256)):
        disk.make_folder(tmp_path / ("m" * 256))


def test_removing_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    target = run_with(tmp_path / "target", "mine")
    (tmp_path / "link").symlink_to(target)
    disk.remove(tmp_path / "link")
    disk.remove(tmp_path / "nothing")
    assert (target / "a.txt").read_text() == "mine"
    assert not (tmp_path / "link").is_symlink()
