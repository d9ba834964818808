"""Lines of a file that somebody else opened."""

import gc
from pathlib import Path

import pytest

from prm.io.lines import lines_of


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_who_reads_one_line_leaves_the_file_open(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,chosen\nanna,yes\n", encoding=encoding)
    with path.open("rb") as file:
        assert next(lines_of(file, path)) == b"user_id,chosen\n"
        gc.collect()
        assert not file.closed


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_file_that_is_closed_before_its_lines_end_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,chosen\nanna,yes\n", encoding="utf-16")
    with path.open("rb") as file:
        lines = lines_of(file, path)
        next(lines)
    del lines
    gc.collect()
