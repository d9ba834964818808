"""What is said of a path where nothing is."""

from pathlib import Path

import pytest

from prm.checkpoint.config_file import read_config
from prm.errors import CheckpointError, PrmError
from prm.io.missing import no_such
from prm.io.tables import require_log
from prm.io.yaml_settings import read_train_config
from prm.models.backbone_paths import locate
from prm.scoring.scorer import Scorer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/first", "runs/firsts.partial"):
        Path(folder).mkdir(parents=True)
    for file in ("log.jsonl", "first.yaml", "runs/fist"):
        Path(file).touch()
    return tmp_path


def test_the_closest_name_of_the_kind_that_is_asked_for(home: Path) -> None:
    """`runs/fist` is a file."""
    assert no_such("runs/fst", "folder") == "runs/fst: no such folder; did you mean 'runs/first'?"
    assert no_such("runs/fst", "file") == "runs/fst: no such file; did you mean 'runs/fist'?"
    assert no_such(home / "log.json", "file or folder").endswith(f"did you mean '{home / 'log.jsonl'}'?")
    assert no_such("runs/zzz", "folder") == "runs/zzz: no such folder"
    assert no_such("none/zzz", "folder") == "none/zzz: no such folder"
    assert no_such("a\0b", "folder") == "a\0b: no such folder"


def test_a_run_a_log_a_yaml_and_a_backbone_that_are_missing(home: Path) -> None:
    for load in (Scorer.from_pretrained, lambda name: read_config(Path(name))):
        with pytest.raises(CheckpointError, match=r"^runs/frst: no such folder; did you mean 'runs/first'\?$"):
            load("runs/frst")
        with pytest.raises(CheckpointError, match=r"^runs/first: no trained model here"):
            load("runs/first")
        with pytest.raises(CheckpointError, match=r"^runs/firsts: no trained model here .*not finished"):
            load("runs/firsts")
    for check, name, meant in (
        (require_log, "./logs.jsonl", "log.jsonl"),
        (read_train_config, "fist.yaml", "first.yaml"),
        (locate, "runs/frst", "runs/first"),
    ):
        with pytest.raises(PrmError, match=f"{name}: no such .*; did you mean '{meant}'"):
            check(name)
