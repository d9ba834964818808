"""Which commit the code is of."""

import subprocess
from pathlib import Path

import pytest

from prm.io import environment


def test_the_commit_is_that_of_our_own_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed below somebody else's repository is not of its commit."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "prm/io/environment.py"))
    assert environment.commit() == head
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "lib/prm/io/environment.py"))
    assert environment.commit() is None
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "prm/io/environment.py"))
    assert environment.commit() is None


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert environment.version_of("no-such-package") == "unknown"
