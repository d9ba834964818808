"""What an installed wheel needs is declared: by the syntax trees and the patterns, without building one."""

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

from tests.paths import ROOT
from tests.test_structure import PACKAGES, SOURCES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENDPOINT = {"openai", "httpx2", "anyio"}  # the extra `endpoint`, and what openai brings; imported where one is named
RAY = {"ray"}  # the extra; imported where `--engine ray` is asked for
BROUGHT = {"starlette", "pydantic", "h11"}  # by fastapi and uvicorn
# the extra `serve`
SERVE = {"fastapi", "uvicorn", "sqlalchemy", "prometheus_client", "limits", *BROUGHT}
NOT_IMPORTED = {"tensorboard", "gguf"}  # torch and transformers import them for us


def third_party(file: Path) -> set[str]:
    """Packages of others that a module imports anywhere."""
    names = set[str]()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    tops = {name.partition(".")[0] for name in names}
    return tops - sys.stdlib_module_names - {*PACKAGES, "_typeshed"}  # for type checkers alone


def required(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^\w.-]", one, maxsplit=1)[0]) for one in requirements}


def normal(name: str) -> str:
    """The name of a distribution as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_a_dependency_and_the_other_way_round() -> None:
    distributions = packages_distributions()
    imported = {name for file in SOURCES for name in third_party(file)}
    needed = {normal(distributions[name][0]) for name in imported - ENDPOINT - SERVE - RAY}
    assert needed | NOT_IMPORTED == required(PROJECT["project"]["dependencies"])
    assert required(PROJECT["project"]["optional-dependencies"]["endpoint"]) == {"openai"}
    assert required(PROJECT["project"]["optional-dependencies"]["ray"]) == RAY
    # psycopg is what SQLAlchemy opens postgresql:// with
    served = required(PROJECT["project"]["optional-dependencies"]["serve"])
    assert served == {normal(distributions[name][0]) for name in SERVE & imported} - BROUGHT | {"psycopg"}


def test_files_beside_modules_are_package_data() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        files = [f.relative_to(ROOT / package) for f in (ROOT / package).rglob("*") if f.is_file()]
        others = [str(f) for f in files if f.suffix != ".py" and "__pycache__" not in f.parts]
        assert others
        assert [f for f in others if not any(fnmatch(f, p.removeprefix("**/")) for p in patterns[package])] == []


def test_versions_tested_together_are_allowed() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split()[0].split("==") for line in lines if "==" in line)
    extras = PROJECT["project"]["optional-dependencies"].values()
    for text in [*PROJECT["project"]["dependencies"], *(one for extra in extras for one in extra)]:
        requirement = Requirement(text)
        if requirement.name in pins:
            assert pins[requirement.name] in requirement.specifier, text
