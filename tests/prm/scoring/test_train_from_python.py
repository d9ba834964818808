"""`prm.train`: a log in memory trains the run that its file trains, and settings are those of the YAML."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

from prm import Comparison, Scorer, train
from prm.config import BackboneConfig, UserConfig
from prm.errors import DataError, PrmError
from prm.io.tables import write_jsonl
from tests.planted import opposed_people
from tests.tiny_runs import SEARCH

LOG = opposed_people(8, 0, people=2)
PROMPT, PAIR = "what of the fox?", ["the king mixes", "seven lazy dogs"]


def settings(backbone: str, folder: Path, **changes: Any) -> dict[str, Any]:
    reading = {"name": backbone, "dtype": "float32"}
    data = {"on_artefact": "warn", "test_fraction": 0.25}
    return {"output_dir": str(folder), "backbone": reading, "search": SEARCH, "data": data} | changes


@pytest.fixture(scope="module")
def scores(backbone_of: Any, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """What the run scores that is trained on the log's file."""
    folder = tmp_path_factory.mktemp("file")
    write_jsonl(folder / "log.jsonl", LOG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        return of(train(folder / "log.jsonl", **settings(backbone_of("llama"), folder / "run")).scorer())


def of(scorer: Scorer) -> torch.Tensor:
    return scorer.score_users(PROMPT, PAIR, ["p0", "p1", None])


def as_numpy() -> list[dict[str, object]]:
    """Scalars of numpy and pandas, as `frame.to_dict("records")` and rows of a frame have them."""
    return [
        {name: np.str_(value) if isinstance(value, str) else value for name, value in c.to_row().items()}
        | {"user_text": pd.NA, "weight": np.float32(1), "p_chosen": np.int64(1), "time": pd.NaT}
        for c in LOG
    ]


def as_frame() -> pd.DataFrame:
    """With a column that half of the rows lack, and a number of numpy's."""
    frame = pd.DataFrame([c.to_row() for c in LOG])
    frame["user_text"] = [None if i % 2 else np.nan for i in range(len(LOG))]
    frame["weight"] = np.ones(len(LOG), np.float32)
    return frame


FORMS: dict[str, Any] = {
    "comparisons": lambda: LOG,
    "a generator": lambda: iter(LOG),
    "dicts": lambda: [c.to_row() for c in LOG],
    "dicts of numpy's scalars": as_numpy,
    "a Dataset": lambda: Dataset.from_list([c.to_row() for c in LOG]),
    "a frame": as_frame,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_log_in_memory_trains_what_its_file_trains(
    tiny: str, tmp_path: Path, form: str, scores: torch.Tensor
) -> None:
    run = train(FORMS[form](), **settings(tiny, tmp_path / "run"))
    assert torch.equal(of(run.scorer()), scores)
    assert run.folder == tmp_path / "run"
    assert run.metrics == json.loads((tmp_path / "run/metrics.json").read_text())
    for name in ("personal", "uniform"):
        best = run.metrics[name]["best"]
        assert run.summary[name] == (best["validation_accuracy"], best["validation_nll"])
        assert f"{name}=<accuracy {100 * best['validation_accuracy']:.1f}%" in repr(run)
    for part in (str(run.folder), "'linear_head'", "users='individual'", "num_users=2", tiny):
        assert part in repr(run)
    assert torch.equal(of(Scorer.from_pretrained(run.folder)), scores)
    assert (tmp_path / "run/test.jsonl").is_file()


def test_settings_may_be_dataclasses_and_override_a_file(tiny: str, tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text("seed: 3\nusers: {kind: uniform}\nsearch: {folds: 2, layers: [1]}\n")
    given = settings(tiny, tmp_path / "run", users=UserConfig("bayes", rank=4))
    del given["search"]
    given["backbone"] = BackboneConfig(tiny)
    run = train(LOG, config=tmp_path / "few.yaml", **given)
    config = json.loads((run.folder / "run.json").read_text())["config"]
    assert (config["seed"], config["users"]["kind"], config["search"]["layers"]) == (3, "bayes", [1])


@pytest.mark.parametrize(
    ("log", "changes", "named"),
    [
        (DatasetDict({"train": Dataset.from_list([c.to_row() for c in LOG])}), {}, "'train'"),
        (7, {}, "'log'.*(int|number)"),
        ([*LOG, "text"], {}, "row 16 of the list"),
        ([{"user_id": "a", "prompt": "p", "chosen": "x"}], {}, "row 0 of the list.*rejected"),
        (LOG, {"userz": {"kind": "bayes"}}, r"'userz'.*'users'"),
        (LOG, {"users": {"kind": "baies"}}, r"'users\.kind'"),
        ([], {}, "'log'.*list.*'chosen'"),
        ([c.to_row() | {"p_chosen": 0.5} for c in LOG], {}, "12 training comparisons"),
        ([{"user_id": 12.0, "prompt": "p", "chosen": "x", "rejected": "y"}], {}, "row 0.*Int64"),
    ],
)
def test_what_cannot_be_trained_on_is_named(tiny: str, tmp_path: Path, log: Any, changes: Any, named: str) -> None:
    with pytest.raises((PrmError, DataError), match=named):
        train(log, **settings(tiny, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_what_became_of_the_rows_is_said_as_by_the_command(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that were read, and the comparisons that each step of the split leaves out."""
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own
    data = {"on_artefact": "warn", "min_comparisons": 3}
    train([*LOG, LOG[0], Comparison("zoe", "why?", "one", "two")], **settings(tiny, tmp_path / "run", data=data))
    lines = capsys.readouterr().err.splitlines()
    assert f"{len(LOG) + 2} rows: {len(LOG) + 1} used, 1 said twice" in lines
    assert f"training: {len(LOG)} comparisons of 8 prompts by 2 users" in lines
    few = "below data.min_comparisons"
    assert f"left out: 1 of users {few} 3, 1 users {few}" in lines


def test_the_same_call_does_not_train_twice_and_another_log_is_refused(tiny: str, tmp_path: Path) -> None:
    given = settings(tiny, tmp_path / "run")
    train(LOG, **given)
    with pytest.raises(PrmError, match="overwrite"):
        train([*LOG, Comparison("p0", "why?", "one", "two")], **given)


@pytest.mark.parametrize("holds", ["a file", "no run folder", "the log"])
def test_overwriting_replaces_runs_alone(tiny: str, tmp_path: Path, holds: str) -> None:
    """A folder of the user's own, or the one with the log, is not theirs to lose."""
    target, log = tmp_path / "mine", tmp_path / "log.jsonl"
    if holds == "a file":
        target.write_text("thesis")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("thesis")
    if holds == "the log":
        log = target / "log.jsonl"
        (target / "run.json").write_text("{}")
    write_jsonl(log, opposed_people(4, 0))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(PrmError, match=holds):
        train(str(log), output_dir=str(target), backbone={"name": tiny}, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
