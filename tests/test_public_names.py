"""What the three packages offer: `__all__`, `dir` and the attributes agree, and nothing is imported before its use."""

import subprocess
import sys
from importlib import import_module

import pytest

from tests.paths import ROOT
from tests.test_structure import HEAVY, PACKAGES

SLOW = HEAVY | {"numpy", "scipy", "pyarrow", "rich", "matplotlib"}


def imported(code: str) -> set[str]:
    """Slow packages that are imported after the code ran in a fresh process."""
    printed = f"import sys\n{code}\nprint('found', *({SLOW!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", printed], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("name", PACKAGES)
def test_dir_lists_the_public_names(name: str) -> None:
    package = import_module(name)
    assert set(package.__all__) <= set(dir(package))
    assert list(package.__all__) == sorted(package.__all__)
    for public in package.__all__:
        value = getattr(package, public)
        assert getattr(value, "__module__", name).split(".")[0] in PACKAGES, public
    with pytest.raises(AttributeError):
        package.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_imports_nothing_slow(name: str) -> None:
    assert imported(f"import {name}\ndir({name})") == set()


@pytest.mark.parametrize(
    "command",
    [["prm"], ["prm", "train"], ["prm", "score"], ["prm", "adapt"], ["rerank"], ["policy"], ["policy", "judge"]],
    ids=" ".join,
)
def test_help_imports_nothing_slow(command: list[str]) -> None:
    name, *words = command
    code = f"from {name}.cli import main\ntry:\n    main({[*words, '--help']!r})\nexcept SystemExit:\n    pass"
    assert imported(code) == set()
