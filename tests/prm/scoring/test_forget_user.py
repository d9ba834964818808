"""After `prm forget` nothing of a person is left: not in any file of the run, beside it, or in the cache."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from prm.checkpoint.checkpoint import read_users
from prm.cli import main
from prm.errors import PrmError
from prm.io.disk import cache_dir
from prm.io.locks import locked
from prm.io.tables import read_rows, read_table, write_json, write_jsonl
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.users.id_table import key_of
from tests.planted import opposed_people
from tests.tiny_runs import config_of, small_log, train_any

WHO, TEXT = "zz-forgotten", "xylophone quartz"
KINDS = ("linear", "bayes", "soft", "dpo", "ppo", "online")


def their_log() -> list[dict[str, object]]:
    """Two people, a third whose prompts and words nobody shares, and a bad row of hers."""
    theirs = [
        replace(c, user_id=WHO, prompt=f"{TEXT} {c.prompt}", user_text=f"{TEXT} says she")
        for c in opposed_people(8, 1, people=1)
    ]
    rows = [c.to_row() for c in [*small_log(), *theirs]]
    rows += [rows[0] | {"user_id": WHO.upper()}, {"user_id": WHO, "prompt": TEXT}, {"prompt": TEXT, "rejected": WHO}]
    return rows  # an id that differs in case only is named in a note


@pytest.fixture(scope="module")
def made(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind, with its log, its run and its cache."""
    folders = {}
    for kind in KINDS:
        folder = folders[kind] = tmp_path_factory.mktemp(kind)
        write_jsonl(folder / "log.jsonl", their_log())
        with pytest.MonkeyPatch.context() as patch:
            if kind == "online":
                patch.setenv("PRM_CACHE", str(folder / "the reward's"))
                train_any(
                    "linear", config_of("linear", backbone_of("llama"), folder, output_dir=str(folder / "reward"))
                )
            patch.setenv("PRM_CACHE", str(folder / "cache"))
            cache_dir().mkdir()
            run = train_any(kind, config_of(kind, backbone_of("llama"), folder))
            if kind in ("linear", "bayes"):
                main(["evaluate", str(run)])
                main(["audit", str(run)])
                main(["adapt", str(run), str(run / "test.jsonl")])
                main(["evaluate", str(run)])
    return folders


def copied(made: dict[str, Path], kind: str, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """The run, with its cache, in a folder of its own."""
    shutil.copytree(made[kind] / "run", folder / "run")
    shutil.copytree(made[kind] / "cache", folder / "cache", dirs_exist_ok=True)
    patch.setenv("PRM_CACHE", str(folder / "cache"))
    note = folder / "run" / "run.json"
    content = json.loads(note.read_text().replace(str(made[kind]), str(folder)))
    if kind == "bayes":
        del content["feature_stores"]  # as in runs from before they were noted: then those that its head reads
    write_json(note, content)
    return folder / "run"


def holding(folder: Path, *words: bytes) -> list[str]:
    """The files below a folder that hold one of these."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)) for path in files if any(word in path.read_bytes() for word in words)]


def own_numbers(run: Path) -> list[bytes]:
    """The bytes of the person's row in each table of the saved model."""
    row = read_users(run).row(WHO)
    own = ("offsets", "embeddings", "weights", "means")
    tables = {name.rpartition(".")[2]: tensor for name, tensor in load_file(run / "model.safetensors").items()}
    numbers = [tables[name][row] for name in own if name in tables]
    if "vectors" in tables:
        numbers += tables["vectors"][tables["first"][row] :][: tables["count"][row]]
    return [one.contiguous().numpy().tobytes() for one in numbers]


def own_digests(run: Path) -> list[bytes]:
    """The bytes of the person's digests of comparisons, and of the hash of their id."""
    record, key = load_file(run / "comparisons.safetensors"), key_of(WHO)
    digests = record["digests"][record["users"] == key].tolist()
    assert 0 < len(digests) < len(record["digests"])
    return [number.to_bytes(8, "little", signed=True) for number in [key, *digests]]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_person_is_left(
    made: dict[str, Path],
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copied(made, kind, tmp_path, monkeypatch)
    for left_by_a_kill in ("run.partial", ".run.old", ".run.new"):
        shutil.copytree(run, tmp_path / left_by_a_kill)
    (run / "answers.jsonl").write_text(json.dumps({"user_id": WHO, "prompt": TEXT, "response": "x"}) + "\n")
    (run / "trainer" / "checkpoint-1").mkdir(parents=True)
    (run / "trainer" / "checkpoint-1" / "state.json").write_text(json.dumps({"user_id": WHO}))
    rows = [*own_numbers(run), *own_digests(run)]
    assert len(rows) > 2
    assert all(any(row) for row in rows)
    assert holding(tmp_path, WHO.encode())
    assert holding(run, *rows)
    assert kind not in ("linear", "bayes", "dpo") or list((tmp_path / "cache").rglob("*.safetensors"))
    figures = f'/{read_users(run).row(WHO)}"'
    assert kind != "online" or figures in (run / "metrics.json").read_text()
    main(["forget", str(run), WHO])
    assert holding(tmp_path, WHO.encode(), TEXT.encode(), *rows) == []
    assert figures not in (run / "metrics.json").read_text()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "run"]
    assert "not ours" not in capsys.readouterr().out
    others = {row["user_id"] for path in run.glob("test.jsonl") for _, row in read_rows(path)}
    assert others == {"p0", "p1"}
    with pytest.raises(PrmError, match=f"'{WHO}'"):
        forget_user(run, WHO)


def test_only_our_own_cache_is_cleared(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever folders `run.json` names, by whatever way around."""
    run = copied(made, "linear", tmp_path, monkeypatch)
    mine = tmp_path / "mine"
    for place in (mine, cache_dir() / "backbones" / "big", cache_dir() / "features"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "model.safetensors").write_text("precious")
    (cache_dir() / "features" / "link").symlink_to(mine)
    (tmp_path / "link").symlink_to(cache_dir() / "features" / "abc" / "1-mean")
    (cache_dir() / "features" / "abc" / "1-mean").mkdir(parents=True)
    (cache_dir() / "features" / "abc" / "1-mean" / "old.safetensors").write_text("an earlier format")
    note = json.loads((run / "run.json").read_text())
    hostile = [
        str(mine),
        str(cache_dir()),
        str(cache_dir() / "features"),
        str(cache_dir() / "features" / ".." / "backbones" / "big"),
        str(cache_dir() / "features" / "link"),
        os.path.relpath(mine),
        "/",
        "",
        "\0",
        3,
        None,
    ]
    ours = [str(tmp_path / "link"), *note["feature_stores"]]
    write_json(run / "run.json", note | {"feature_stores": [*hostile, *ours]})
    main(["forget", str(run), WHO])
    for place in (mine, cache_dir() / "backbones" / "big", cache_dir() / "features"):
        assert (place / "model.safetensors").read_text() == "precious"
    assert not list((cache_dir() / "features").glob("*/*/*.safetensors"))
    assert str(mine) in capsys.readouterr().out


def test_a_link_to_a_run_is_followed_and_stays(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(made, "linear", tmp_path, monkeypatch)
    real = run.rename(tmp_path / "elsewhere")
    run.symlink_to(real)
    forget_user(run, WHO)
    assert run.is_symlink()
    assert holding(tmp_path, WHO.encode(), TEXT.encode()) == []
    assert "p0" in Scorer.from_pretrained(run).users


def test_what_a_link_leads_to_and_what_is_not_ours_is_said_to_stay(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied(made, "linear", tmp_path, monkeypatch)
    log = (run / "test.jsonl").rename(tmp_path / "shared.jsonl")
    (run / "test.jsonl").symlink_to(log)
    (run / "notes.txt").write_text(f'ask "{WHO}" again')
    main(["forget", str(run), WHO])
    said = capsys.readouterr().out
    assert str(log) in said
    assert str(run / "notes.txt") in said
    assert holding(run, WHO.encode()) == ["notes.txt"]
    assert WHO in log.read_text()  # as it was said


def test_a_run_that_another_command_writes_to_is_left_alone(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(made, "linear", tmp_path, monkeypatch)
    said: list[str] = []

    def forget() -> None:
        try:
            forget_user(run, WHO)
        except PrmError as error:
            said.append(str(error))

    with locked(run):
        thread = threading.Thread(target=forget)
        thread.start()
        thread.join()
    assert len(said) == 1
    assert str(run) in said[0]
    assert Scorer.from_pretrained(run).knows(WHO)


def test_somebody_forgotten_may_be_taken_in_again(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the very log that was the last to be taken in; without having been forgotten, it is not taken in twice."""
    run = copied(made, "bayes", tmp_path, monkeypatch)
    log = [row for row in their_log() if row.get("user_id") == WHO and "chosen" in row]
    write_jsonl(tmp_path / "log.jsonl", log)
    counts = []
    for _ in range(2):
        main(["adapt", str(run), str(tmp_path / "log.jsonl")])
        counts.append(Scorer.from_pretrained(run).judgements(WHO))
    assert counts[0] == counts[1]
    forget_user(run, WHO)
    main(["adapt", str(run), str(tmp_path / "log.jsonl")])
    assert Scorer.from_pretrained(run).judgements(WHO) == len(log)


def test_no_copy_of_a_log_is_kept_by_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of files is read through `datasets`, whose cache would keep all of it for ever."""
    monkeypatch.setenv("PRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "theirs")
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", tmp_path / "theirs" / "downloads")
    write_jsonl(tmp_path / "log" / "train.jsonl", [{"prompt": TEXT}] * 3)
    left = tmp_path / "cache" / "scratch" / "of-a-kill"
    left.mkdir(parents=True)
    rows = read_table(str(tmp_path / "log"))
    assert next(rows).values == {"prompt": TEXT}
    assert not left.exists()
    in_use = [path for path in left.parent.iterdir() if path.is_dir()]
    assert len(list(read_table(str(tmp_path / "log")))) == 3  # while the first is still read
    assert [path for path in left.parent.iterdir() if path.is_dir()] == in_use
    assert len(list(rows)) == 2
    assert holding(tmp_path / "cache", TEXT.encode()) == []
    assert not (tmp_path / "theirs").exists() or holding(tmp_path / "theirs", TEXT.encode()) == []
