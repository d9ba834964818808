"""Names of files at the edge of what a system takes: a command works with them, or says in one line why not."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from policy.cli import main as policy
from prm.checkpoint.checkpoint import read_config
from prm.cli import main as prm
from prm.errors import PrmError
from prm.io.tables import read_rows, write_jsonl
from rerank.cli import main as rerank
from tests.tiny_runs import config_of, small_log, train_any

LONG, LONGER = "l" * 240, "l" * 250  # with an ending of ours a name may have more than 255 bytes
NAMES = {
    "long": LONG,
    "longer": LONGER,
    "too long": "l" * 300,
    "two bytes a letter": "é" * 120,
    "no UTF-8": os.fsdecode(b"run \xff\xfe"),
    "half a pair": "run \ud800",
    "a line end": "run\none",
    "white space": " run ",
    "a dash": "-run",
}

UNUSABLE = ("too long", "half a pair")


@pytest.fixture(scope="module")
def made(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, requests, and runs of a reward model and of a policy."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(home / "cache"))
        for kind in ("linear", "dpo"):
            write_jsonl(home / kind / "log.jsonl", small_log(12))
            train_any(kind, config_of(kind, backbone_of("llama"), home / kind))
    write_jsonl(home / "asked.jsonl", [{"prompt": "what?", "user_id": "p0", "responses": ["a king", "a dog"]}])
    return home


def said(main: Callable[[list[str]], None], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that was refused; "" where it went well."""
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            assert len(line) == 1
            return line[0]
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_files_of_any_name(made: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is written has the name that was given and is whole; nothing else is left, of what is refused nothing."""
    place = tmp_path / "here"
    place.mkdir()
    file, asked, run = str(place / NAMES[name]), str(made / "asked.jsonl"), str(made / "linear/run")
    log = list(read_rows(made / "linear/run/test.jsonl"))
    for main, arguments in [
        (prm, ["score", run, "--input", asked, "--output", file]),
        (rerank, [run, "--input", asked, "--output", file]),
        (policy, ["sample", str(made / "dpo/run"), asked, "--output", file, "--sampling.max_new_tokens", "2"]),
    ]:
        refused = said(main, arguments, capsys)
        assert bool(refused) is (name in UNUSABLE)
        assert os.listdir(place) == ([] if refused else [NAMES[name]])
        if not refused:
            assert len(list(read_rows(file))) == 1
    if name not in UNUSABLE:
        write_jsonl(file, [row for _, row in read_rows(asked)])
    for main, arguments in [
        (prm, ["score", run, "--input", file]),
        (rerank, [run, "--input", file]),
    ]:
        assert not said(main, arguments, capsys) or name in UNUSABLE
    if name not in UNUSABLE:
        write_jsonl(file, [row for _, row in log])
    assert not said(prm, ["evaluate", run, file], capsys) or name in UNUSABLE
    assert not said(prm, ["pool", run, f"--data={Path(file).stem}"], capsys) or name in UNUSABLE


@pytest.mark.parametrize("name", NAMES)
def test_runs_of_any_name(made: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained, evaluated, adapted and forgotten under that name, or nothing is left."""
    place = tmp_path / "here"
    place.mkdir()
    folder, asked = str(place / NAMES[name]), str(made / "asked.jsonl")
    config = config_of(
        "linear", read_config(made / "linear/run").settings.backbone.name, made / "linear", output_dir=folder
    )
    if name in (*UNUSABLE, "no UTF-8"):
        with pytest.raises((PrmError, OSError)):
            train_any("linear", config)
        for command in (["score", folder, "--input", asked], ["evaluate", folder], ["forget", folder, "p0"]):
            assert said(prm, command, capsys)
        assert not os.listdir(place)
        return
    train_any("linear", config)
    for main, arguments in [
        (prm, ["score", folder, "--input", asked]),
        (rerank, [folder, "--input", asked]),
        (prm, ["evaluate", folder]),
        (prm, ["adapt", folder, folder + "/test.jsonl"]),
        (prm, ["forget", folder, "p0"]),
    ]:
        assert not said(main, arguments, capsys), arguments
    assert os.listdir(place) == [NAMES[name]]


def test_a_name_with_a_line_end_is_named_in_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = said(prm, ["score", str(tmp_path / "no\nrun"), "--input", str(made / "asked.jsonl")], capsys)
    assert "no\\nrun: no such folder" in refused
