"""A kill before any change on the disk: the same command again ends as if there had been none, to the bit.

Each command is ended at every change that it makes, at one after the other: what a killed call left is what the next
one finds. What was cut off is left half done. `make soak` ends a fresh command at each change, and lets the next end.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from policy.cli import main as policy
from prm.cli import main as prm
from prm.io import disk
from prm.io.tables import write_jsonl
from prm.training.trainers.resume import step_of
from tests.planted import opposed_people
from tests.policy import test_compare
from tests.tiny_runs import config_of, files_of, small_log, train_any

RUNS = ("linear", "bayes", "soft", "sft", "dpo", "ppo", "online")
COMMANDS: dict[str, tuple[Callable[[list[str]], object], list[str]]] = {
    "adapt": (prm, ["adapt", "run", "more.jsonl"]),
    "adapt into a copy": (prm, ["adapt", "run", "more.jsonl", "--output", "copy"]),
    "forget": (prm, ["forget", "run", "p0"]),
    "evaluate": (prm, ["evaluate", "run"]),
    "audit": (prm, ["audit", "run"]),
    "cold_start": (prm, ["cold_start", "run", "more.jsonl", "--after", "1"]),
    "compare": (policy, ["compare", "compare.yaml"]),
}
STEPS = {"batch_size": 4, "micro_batch_size": 4}
STOPS_EARLY = {"epochs": 9.0, "early_stopping_patience": 2, "user_lr": 3.0, "lora_lr": 1.0}
OTHERS = {"tokenizer": "tokenizer.json", "adapter": "adapter_model.safetensors", "backbone": "model.safetensors"}
Work = Callable[[], object]  # a command in the folder that is the current one


class Killed(BaseException):
    """No handler of errors sees it, as none sees a kill."""


class Kills:
    """Ends a command before a change: the first that it has not been ended at yet, or, once, the one of a number."""

    def __init__(self, number: int | None = None):
        self.number, self.seen = number, list[tuple[str, str]]()

    def __call__(self, step: str, path: Path) -> None:
        place = (step, re.sub(r"[0-9a-f]{32}", "*", os.path.relpath(path)))
        if self.number is not None:
            self.number -= 1
        if place not in self.seen if self.number is None else self.number == -1:
            self.seen.append(place)
            leave_half(step, path)
            raise Killed(*place)


def leave_half(step: str, path: Path) -> None:
    """What a change may leave that was cut off in the middle."""
    if step == "write":
        path.write_bytes(b'{"half of a')
    elif step == "append":
        with path.open("ab") as file:
            file.write(b'{"half of a')
    elif step == "remove" and path.is_dir() and not path.is_symlink():
        for part in sorted(p for p in path.rglob("*") if p.is_file())[::2]:
            part.unlink()
    elif step in ("copy", "link"):
        path.mkdir(exist_ok=True) if not path.suffix else path.write_bytes(b'{"half of a')
    elif step == "others":
        path.mkdir(exist_ok=True)
        (path / OTHERS.get(path.name, "optimizer.pt")).write_bytes(b"half")


def ended(work: Work, kills: Callable[[str, Path], None], patch: pytest.MonkeyPatch) -> bool:
    """Whether a kill ended it."""
    with patch.context() as inner:
        inner.setattr(disk, "before", kills)
        try:
            work()
        except Killed:
            return True
        except SystemExit as error:
            if error.code != 2 or not getattr(kills, "seen", None):  # nobody is forgotten twice
                raise
    return False


def content_of(folder: Path, work: Work | None = None) -> dict[str, bytes]:
    """All of the folder, the cache aside: the run, and whatever is left beside it."""
    if work is not None:
        work()
    return {name: content for name, content in files_of(folder).items() if not name.startswith("cache")}


def write_compare(backbone: str, folder: Path) -> None:
    """A comparison of two arms, one of which is trained."""
    settings = test_compare.tree(backbone, folder)
    settings["runs"] = {"sft": settings["runs"]["sft"]}
    settings["arms"] = {name: settings["arms"][name] for name in ("SFT", "chosen")}
    settings |= {"output_dir": "out", "data": settings["data"] | {"path": "compare.jsonl"}}
    (folder / "log.jsonl").rename(folder / "compare.jsonl")
    test_compare.write(folder, settings)


@pytest.fixture(scope="module")
def start(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, and a reward model that some commands change."""
    folder = tmp_path_factory.mktemp("start") / "work"
    folder.mkdir()
    write_compare(backbone_of("llama"), folder)
    write_jsonl(folder / "log.jsonl", small_log())
    write_jsonl(folder / "more.jsonl", [replace(c, user_id="zoe") for c in opposed_people(4, 7, people=1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        train_any("bayes", config_of("bayes", backbone_of("llama"), folder))
        train_any("linear", config_of("linear", backbone_of("llama"), folder, output_dir=str(folder / "reward")))
    return folder


@pytest.fixture
def fresh(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Path]:
    """Copies of it, with or without the run, each in place of the last: whatever names its place is alike."""

    def copy(has_run: bool) -> Path:
        folder = tmp_path / "work"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        if not has_run:
            shutil.rmtree(folder / "run")
        note = folder / "run" / "run.json"
        if has_run:
            note.write_text(note.read_text().replace(str(start), str(folder)))
        monkeypatch.setenv("PRM_CACHE", str(folder / "cache"))
        monkeypatch.chdir(folder)
        return folder

    return copy


@pytest.fixture
def command(backbone_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Work]:
    """A command by its name, in a time that stands still."""
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)

    def named(what: str) -> Work:
        if what in COMMANDS:
            main, arguments = COMMANDS[what]
            return lambda: main(arguments)
        optim = STEPS | (STOPS_EARLY if what == "soft" else {})

        def train() -> Path:
            config: Any = config_of(what, backbone_of("llama"), Path.cwd())
            return train_any(what, replace(config, optim=replace(config.optim, **optim)))

        return train

    return named


# the others save as one of these does: `make soak` kills them too
@pytest.mark.parametrize("what", ["linear", "soft", "ppo", *COMMANDS])
def test_a_kill_before_any_change_changes_nothing(
    what: str,
    fresh: Callable[[bool], Path],
    command: Callable[[str], Work],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work, has_run = command(what), what in COMMANDS
    expected = content_of(fresh(has_run), work)
    folder, kills = fresh(has_run), Kills()
    while ended(work, kills, monkeypatch):
        assert len(kills.seen) < 300, kills.seen[-5:]
    assert len(kills.seen) > 1
    assert_same(content_of(folder), expected)
    assert what != "soft" or 2 < json.loads(expected["run/metrics.json"])["steps"] < 18  # it stopped early


@pytest.mark.soak
@pytest.mark.parametrize("what", [*RUNS, *COMMANDS])
def test_one_kill_before_each_change_changes_nothing(
    what: str,
    fresh: Callable[[bool], Path],
    command: Callable[[str], Work],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work, has_run = command(what), what in COMMANDS
    expected = content_of(fresh(has_run), work)
    for number in range(1000):
        folder, kills = fresh(has_run), Kills(number)
        if not ended(work, kills, monkeypatch):
            break
        assert not ended(work, kills, monkeypatch)
        assert_same(content_of(folder), expected)
    assert number > 1


@pytest.mark.parametrize("what", ["soft", "ppo"])
def test_a_damaged_state_is_left_for_the_one_before(
    what: str,
    fresh: Callable[[bool], Path],
    command: Callable[[str], Work],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One bit of the newest state is another; training is over, and would not look at it any more than this."""
    work = command(what)
    expected = content_of(fresh(False), work)
    folder = fresh(False)

    def kill(step: str, path: Path) -> None:
        if path.name == ".metrics.json.tmp":
            raise Killed

    assert ended(work, kill, monkeypatch)
    newest = max((folder / "run.partial" / "trainer").glob("checkpoint-*"), key=step_of)
    assert step_of(newest) > 1
    largest = max(newest.iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    steps = list[int]()
    step = Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda self, *args: steps.append(1) or step(self, *args))
    with caplog.at_level(logging.INFO):
        work()
    assert len(steps) == (what == "soft")  # the one that the damaged state had behind it
    assert str(largest) in caplog.text
    assert str(newest.with_name(f"checkpoint-{step_of(newest) - 1}")) in caplog.text
    assert_same(content_of(folder), expected)


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert sorted(found) == sorted(expected)
    for name, content in expected.items():
        at = next((i for i, (a, b) in enumerate(zip(found[name], content)) if a != b), len(content))
        around = slice(max(0, at - 80), at + 40)
        assert found[name] == content, f"{name}: {found[name][around]!r} instead of {content[around]!r}"
