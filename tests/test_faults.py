"""`FAULTS.md` names files and tests that exist: a test that was renamed takes its line along."""

import ast
import re
from pathlib import Path

import pytest

from tests.paths import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("| \n").split(" | ")]
    for line in (ROOT / "tests/FAULTS.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| fault |")
]


def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_fault_seen_in_peers_has_a_line() -> None:
    assert {row[0][0] for row in ROWS if row[0][1] == "."} == set("12345678")
    assert len({tuple(row[:2]) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_line_names_a_file_a_place_in_it_and_a_test_that_exist(row: list[str]) -> None:
    _, injected, test = row
    for path in re.findall(r"`([\w/]+\.py)`", injected):
        assert (ROOT / path).is_file(), path
    for path, name in re.findall(r"`([\w/]+\.py)`, `([\w.]+)`", injected):
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", (ROOT / path).read_text(encoding="utf-8")), name
    file, _, name = test.strip("`").partition("::")
    assert name in names_in(ROOT / file), test
