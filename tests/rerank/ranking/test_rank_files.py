"""`rerank --engine local`: the ranking of the command without it."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prm.io.tables import read_rows, write_jsonl
from rerank.cli import main
from tests.prm.scale.conftest import rows_to_score
from tests.prm.scale.conftest import run_of as run_of


@pytest.mark.parametrize("strategy", ["best", "soft:0.5"])
def test_files_are_ranked_as_requests_are(run_of: Callable[[str], Path], tmp_path: Path, strategy: str) -> None:
    rows = [json.loads(json.dumps(row)) for row in rows_to_score(16)]
    for row in rows[::2]:
        row["responses"] = [{"response": text, "ended": True} for text in row["responses"]]
    rows[1]["responses"] *= 2  # the same text twice
    path = str(tmp_path / "rows.jsonl")
    write_jsonl(path, rows)
    flags = [str(run_of("linear")), "--input", path, "--strategy", strategy]
    main([*flags, "--output", str(tmp_path / "one.jsonl")])
    main([*flags, "--output", str(tmp_path / "out"), "--engine", "local"])
    (shard,) = (tmp_path / "out").glob("*.parquet")
    for row, (_, alone) in zip(pq.read_table(shard).to_pylist(), read_rows(tmp_path / "one.jsonl"), strict=True):
        ranking = [{k: v for k, v in entry.items() if v is not None} for entry in row.pop("ranking")]
        expected = alone.pop("ranking")
        assert isinstance(expected, list)
        assert row == alone
        for entry, other in zip(ranking, expected, strict=True):
            assert isinstance(other, dict)
            numbers = {k: v for k, v in other.items() if isinstance(v, float)}
            assert {k: entry[k] for k in numbers} == pytest.approx(numbers, abs=1e-5)
            assert {**entry, **numbers} == other


@pytest.mark.parametrize(
    "flags",
    [
        ["--strategy", "pessimistic:1"],
        ["-n", "4"],
        ["--user", "p0"],
        ["--generator", "x"],
        ["--workers", "2"],
    ],
)
def test_what_files_cannot_have_is_refused(run_of: Callable[[str], Path], tmp_path: Path, flags: list[str]) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows_to_score(4))
    files = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out"), "--engine", "local"]
    with pytest.raises(SystemExit) as stop:
        main([str(run_of("linear")), *files, *flags])
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists()


def test_a_row_without_responses_is_named(
    run_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [*rows_to_score(4), {"prompt": "why?"}])
    with pytest.raises(SystemExit):
        main([str(run_of("linear")), "--input", str(path), "--output", str(tmp_path / "out"), "--engine", "local"])
    assert f"{path}, line 5: 'responses' is missing" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.parquet"))
    job = [str(run_of("linear")), "--input", str(path), "--output", str(tmp_path / "skipped"), "--engine", "local"]
    main([*job, "--on_bad_row", "skip"])
    rows = pq.read_table(tmp_path / "skipped").to_pylist()
    assert [len(row["ranking"] or ()) for row in rows] == [2, 2, 2, 2, 0]
    assert [row["error"] for row in rows[:4]] == [None] * 4
    assert f"{path}, line 5: 'responses'" in rows[4]["error"]
