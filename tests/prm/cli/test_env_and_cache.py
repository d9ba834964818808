"""`prm env` and `prm cache`."""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import prm
from prm.cli import main
from prm.cli.env_and_cache import in_bytes
from prm.io.environment import environment
from prm.models import backbone_paths
from tests.paths import ROOT


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, size in {"15-mean": 1500, "logps": 40}.items():
        shard = tmp_path / f"features/{'0' * 16}-2" / name / f"{'a' * 64}.safetensors"
        shard.parent.mkdir(parents=True)
        shard.write_bytes(b"x" * size)
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setenv("PRM_CACHE", str(tmp_path))
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out


def test_the_cache_is_listed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "cache", "--json"))
    assert found["folder"] == str(cache)
    assert found["others"] == ["notes.txt"]
    assert {entry["kind"]: entry["bytes"] for entry in found["entries"]} == {
        "hidden_states": 1500,
        "reference_logps": 40,
    }
    shown = printed(capsys, "cache")
    assert "1.5 kB" in shown
    assert "notes.txt" in shown
    only = json.loads(printed(capsys, "cache", "list", "reference_logps", "--json"))["entries"]
    assert [entry["bytes"] for entry in only] == [40]


def test_a_kind_is_cleared_and_what_is_not_ours_stays(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "cache", "clear", "hidden_states", "--json"))
    assert [entry["kind"] for entry in found["removed"]] == ["hidden_states"]
    assert found["in_use"] == []
    shown = printed(capsys, "cache", "clear")
    assert "reference_logps" in shown
    assert "notes.txt" in shown
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]
    with pytest.raises(SystemExit) as stop:
        main(["cache", "clear", "notes.txt"])
    assert stop.value.code == 2


def test_the_environment_is_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRM_CACHE", str(tmp_path))
    found = json.loads(printed(capsys, "env", "--json"))
    assert found["versions"]["torch"] == version("torch")
    assert found["python"] == platform.python_version()
    assert found["threads"] == torch.get_num_threads()
    assert found["cache"] == str(tmp_path)
    assert (found["commit"], found["versions"]) == (environment()["commit"], environment()["versions"])
    shown = printed(capsys, "env")
    assert all(str(value) in shown for value in (*found["versions"].values(), found["platform"], tmp_path))


def test_the_environment_says_how_the_embedded_model_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRM_CACHE", str(tmp_path))
    monkeypatch.setattr(backbone_paths.importlib.util, "find_spec", lambda name: None)
    assert backbone_paths.INSTALL_EMBEDDED in printed(capsys, "env")
    (tmp_path / "backbones/smollm2-135m").mkdir(parents=True)
    (tmp_path / "backbones/smollm2-135m/model.safetensors").touch()
    found = json.loads(printed(capsys, "env", "--json"))
    assert found["embedded_model"] == str(tmp_path / "backbones/smollm2-135m")


def test_a_broken_torch_is_described(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch" in json.loads(printed(capsys, "env", "--json"))["device"]


@pytest.mark.parametrize("name", ["prm", "rerank", "policy"])
def test_a_package_runs_as_a_module(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [name, prm.__version__]
    assert prm.__version__ == version("personalized-rm")
    done = subprocess.run([sys.executable, "-m", name, "--flag"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_600, "1.0 MB"),
        (2_500_000_000, "2.5 GB"),
        (7 * 10**15, "7000 TB"),
    ],
)
def test_bytes_by_hand(number: int, text: str) -> None:
    assert in_bytes(number) == text
