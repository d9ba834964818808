"""`prm score --engine local`: the numbers of one call, each text read once, shards whole or absent, faults named."""

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import Tensor

from prm.cli import main
from prm.config import LayerPooling
from prm.data.encoding import Encoded
from prm.errors import DataError, PrmError
from prm.io import disk
from prm.io.tables import write_jsonl
from prm.models.reward_model import RewardModel
from prm.scale import read_texts
from prm.scale.score_files import score_files
from prm.scale.work_files import opened
from prm.scoring import text_reader
from prm.scoring.scorer import Scorer
from tests.paths import ROOT
from tests.prm.scale.conftest import ScoredRow, rows_to_score

CLOSE = 1e-5


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of each: groups, lots of a portion, parts of a group by prompt and by text, tasks, blocks of rewards."""
    monkeypatch.setattr("prm.scale.job._GROUP_BYTES", 2000)
    monkeypatch.setattr("prm.scale.sort_texts._LOT_BYTES", 1500)
    for name, size in {"_TASK_TEXTS": 4, "_PART_BYTES": 400, "_BLOCK_TEXTS": 20}.items():
        monkeypatch.setattr(read_texts, name, size)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Encoded]:
    """Every sequence that a backbone reads from now on."""
    sequences: list[Encoded] = []
    real = text_reader.read_pooled

    def counted(model: RewardModel, texts: Sequence[Encoded], *rest: object) -> dict[LayerPooling, Tensor]:
        sequences.extend(texts)
        return real(model, texts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(text_reader, "read_pooled", counted)
    return sequences


def written(folder: Path) -> list[ScoredRow]:
    """All rows of the shards, in order."""
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def expected(run: Path, rows: Sequence[ScoredRow]) -> list[list[float]]:
    """The rewards of each row, by one scorer."""
    scorer = Scorer.from_pretrained(run, device="cpu")
    return [
        scorer.score(r["prompt"], r["responses"], r.get("user_id"), r.get("user_text") or "").tolist() for r in rows
    ]


@pytest.mark.parametrize("kind", ["linear", "bayes", "soft", "dpo"])
@pytest.mark.usefixtures("small_pieces")
def test_the_numbers_are_those_of_one_call(run_of: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """Rows keep their order and columns, over several shards, groups, lots, parts and tasks."""
    rows, run = rows_to_score(), run_of(kind)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    folder = score_files(str(run), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), device="cpu", shard_rows=7)
    assert [p.name for p in sorted(folder.glob("*.parquet"))] == [f"part-{i:05d}.parquet" for i in range(6)]
    out = written(folder)
    assert [{k: v for k, v in row.items() if k in rows[0]} for row in out] == rows
    assert [row["known_user"] for row in out] == [row["user_id"] in ("p0", "p1") for row in rows]
    for row, rewards in zip(out, expected(run, rows), strict=True):
        assert row["rewards"] == pytest.approx(rewards, abs=CLOSE)
    assert sorted(p.name for p in folder.iterdir() if p.name[0] != "p") == ["_manifest.json"]


@pytest.mark.parametrize("kind", ["linear", "soft"])
@pytest.mark.usefixtures("small_pieces")
def test_each_text_is_read_once_in_the_whole_job(
    run_of: Callable[[str], Path], tmp_path: Path, kind: str, read: list[Encoded]
) -> None:
    """For all users by linear heads, once for each user by soft prompts; strangers are one user."""
    rows = rows_to_score()
    for i in range(3):  # the same texts again, in other files
        write_jsonl(tmp_path / f"{i}.jsonl", rows[i:])
    score_files(str(run_of(kind)), str(tmp_path / "*.jsonl"), str(tmp_path / "out"), device="cpu", shard_rows=7)
    known: dict[str | None, str] = {"p0": "p0", "p1": "p1"}
    texts = {
        (row["prompt"], response, known.get(row["user_id"]) if kind == "soft" else None)
        for row in rows
        for response in row["responses"]
    }
    assert len(read) == len(texts)
    if kind == "linear":  # the ids of users are numbered anew in each call
        assert len({(*s.ids, *s.response) for s in read}) == len(texts)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_files_of_each_kind(run_of: Callable[[str], Path], tmp_path: Path, ending: str) -> None:
    rows: list[ScoredRow] = [
        {"user_id": r["user_id"], "prompt": r["prompt"], "response": r["responses"][0]} for r in rows_to_score(12)
    ]
    path, run = tmp_path / f"rows.{ending}", run_of("linear")
    if ending == "jsonl":
        write_jsonl(path, rows)
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    main(["score", str(run), "--input", str(path), "--output", str(tmp_path / "out"), "--engine", "local"])
    asked: list[ScoredRow] = [{**row, "responses": [row["response"]]} for row in rows]
    out = written(tmp_path / "out")
    assert [row["reward"] for row in out] == pytest.approx([r[0] for r in expected(run, asked)], abs=CLOSE)
    assert "rewards" not in out[0]


def test_packed_files_have_groups_for_what_they_hold(
    run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parquet, which has a text once for all rows, for 256 bytes a row; a file that is packed for 8 times its size."""
    monkeypatch.setattr("prm.scale.job._GROUP_BYTES", 2560)
    rows = [{"prompt": "why?", "response": "fox"}] * 100
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    packed = (tmp_path / "a.jsonl.gz").stat().st_size
    for name, groups in {"a.parquet": 11, "a.jsonl.gz": 1 + 8 * packed // 2560}.items():
        out = score_files(str(run_of("linear")), str(tmp_path / name), str(tmp_path / f"{name}.out"), device="cpu")
        assert json.loads((out / "_manifest.json").read_text())["groups"] == groups


def test_values_of_any_kind_are_kept(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    """What no type of Parquet fits over all rows and shards becomes JSON text; a missing value stays missing."""
    chat = [{"role": "user", "content": "why?"}]
    rows: list[dict[str, object]] = [
        {"prompt": chat, "response": "fox", "n": 1, "mixed": 1, "only": {"a": [1]}},
        {"prompt": chat, "response": "old king", "n": 2.5, "mixed": "two", "text": None},
        {"prompt": "why?", "response": "fox", "n": None, "mixed": [3], "big": 2**70},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    out = written(
        score_files(
            str(run_of("linear")), str(tmp_path / "rows.jsonl"), str(tmp_path / "o"), device="cpu", shard_rows=1
        )
    )
    assert [row["n"] for row in out] == [1.0, 2.5, None]
    assert [json.loads(row["mixed"]) for row in out] == [1, "two", [3]]
    assert [json.loads(row["prompt"]) for row in out] == [row["prompt"] for row in rows]
    assert [row["only"] for row in out] == [{"a": [1]}, None, None]
    assert [row["big"] for row in out] == [None, None, str(2**70)]
    assert out[0]["reward"] == out[2]["reward"]  # one user message is the same as plain text
    assert len({tuple(pq.read_schema(p).names) for p in (tmp_path / "o").glob("*.parquet")}) == 1


def test_memory_does_not_grow_with_the_rows(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Of a process of its own: 80 MB more of rows add less than 60, once there are enough to fill buffers."""
    code = """
import sys
from benchmarks.memory import status
from prm.scale import read_texts, score_files
score_files._engine = lambda *_: lambda tasks: ((task, [0.5] * len(task.texts.users)) for task in tasks)
for name in ("few", "many"):
    score_files.score_files(sys.argv[1], f"{sys.argv[2]}/{name}.jsonl", f"{sys.argv[2]}/{name}", shard_rows=500)
    print(status("VmHWM"))
"""
    for name, n in (("few", 4000), ("many", 12000)):
        rows = ({"prompt": f"fox {i}?", "response": f"king {i}", "note": f"{i} " * 2000} for i in range(n))
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    command = [sys.executable, "-c", code, str(run_of("linear")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    few, many = map(int, done.stdout.split())
    assert many - few < 60e6
    assert pq.read_metadata(tmp_path / "many" / "part-00007.parquet").num_rows == 500


class Killed(BaseException):
    """A kill: no `except Exception` catches it."""


def test_a_killed_job_goes_on(
    run_of: Callable[[str], Path], tmp_path: Path, read: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended before each of its changes in turn: shards are whole or absent, no text with a reward is read again."""
    monkeypatch.setattr("prm.scale.job._GROUP_BYTES", 600)
    monkeypatch.setattr("prm.scale.sort_texts._LOT_BYTES", 1)  # a portion in each
    rows, run = rows_to_score(16), run_of("linear")
    write_jsonl(tmp_path / "rows.jsonl", rows)
    rewards, texts = expected(run, rows), {(row["prompt"], response) for row in rows for response in row["responses"]}
    steps_left, steps = 0, 0

    def before(step: str, path: Path) -> None:
        nonlocal steps_left
        steps_left -= 1
        if steps_left < 0:
            raise Killed

    def score(out: Path) -> None:
        score_files(str(run), str(tmp_path / "rows.jsonl"), str(out), device="cpu", shard_rows=10)

    monkeypatch.setattr(disk, "before", before)
    kept_once = done = False
    while not done:
        steps, out = steps + 1, tmp_path / f"out{steps}"
        steps_left = steps
        try:
            score(out)
            done = True
        except Killed:
            shards = sorted(out.glob("*.parquet"))
            assert [pq.read_metadata(path).num_rows for path in shards] == [10, 6][: len(shards)]
        files = list(out.glob("_work/rewards-*.arrow"))
        kept = {position for path in files for position in positions(path)}
        steps_left = 10**6
        read.clear()
        score(out)
        if files:  # each text is asked for by four people
            assert len(read) == len(texts) - len(kept) // 4
        kept_once |= 0 < len(kept) < 4 * len(texts)
        for row, values in zip(written(out), rewards, strict=True):
            assert row["rewards"] == pytest.approx(values, abs=CLOSE)
        names = sorted(path.name for path in out.iterdir())
        assert names == ["_manifest.json", "part-00000.parquet", "part-00001.parquet"]
    assert steps > 10
    assert kept_once


def positions(path: Path) -> list[tuple[int, int]]:
    """(portion, position) of each reward of a work file."""
    with opened(path) as reader:
        batch = reader.get_batch(0)
    return [*zip(*(batch.column(name).to_pylist() for name in ("portion", "position")), strict=True)]


BAD = {
    "not JSON": ('{"prompt": "why?", "response": "fox"}\n{"prompt"\n', "line 2"),
    "no prompt": ('{"prompt": "why?", "response": "fox"}\n\n{"response": "fox"}\n', "line 3.*'prompt'"),
    "empty answer": ('{"prompt": "why?", "responses": ["fox", " "]}\n', r"line 1.*'responses\[1\]' is empty"),
    "no answers": ('{"prompt": "why?", "responses": []}\n', "line 1.*'responses'"),
    "user": ('{"prompt": "why?", "response": "fox", "user_id": [1]}\n', "line 1.*'user_id'"),
    "long": (json.dumps({"prompt": "why?", "response": "fox " * 500}) + "\n", "line 1.*tokens"),
    "long user text": (
        json.dumps({"prompt": "why?", "response": "fox", "user_text": "fox " * 500}) + "\n",
        "line 1.*tokens",
    ),
    "nothing": ("", "no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_before_anything_is_read(
    run_of: Callable[[str], Path], tmp_path: Path, case: str, loads: list[str]
) -> None:
    text, said = BAD[case]
    (tmp_path / "a.jsonl").write_text('{"prompt": "why?", "response": "fox"}\n')
    (tmp_path / "b.jsonl").write_text(text)
    run = str(run_of("linear"))
    loads.clear()
    with pytest.raises(DataError, match=rf"(?s)b\.jsonl.*{said}"):
        score_files(run, str(tmp_path / "*.jsonl"), str(tmp_path / "out"), device="cpu")
    assert not loads


@pytest.mark.parametrize("case", [case for case in BAD if case != "nothing"])
def test_skipped_rows_say_what_is_wrong_and_change_no_other(
    run_of: Callable[[str], Path], tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a job that goes on, with a shard of bad rows alone, and in a job without a good row."""
    monkeypatch.setattr("prm.scale.sort_texts._LOT_BYTES", 1)  # a portion in each
    monkeypatch.setattr("prm.scale.job._GROUP_BYTES", 600)
    rows, run, out = rows_to_score(8), run_of("linear"), tmp_path / "out"
    bad, rewards = BAD[case][0].splitlines()[-1], iter(expected(run, rows))
    good = iter(json.dumps(row) for row in rows)
    lines = [bad if place in (2, 3, 4, 5, 9) else next(good) for place in range(13)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "none.jsonl").write_text(bad + "\n")

    def score(out: Path, name: str = "a.jsonl") -> None:
        score_files(str(run), str(tmp_path / name), str(out), device="cpu", shard_rows=3, on_bad_row="skip")

    with monkeypatch.context() as patch:
        patch.setattr("prm.scale.score_files.write_shards", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            score(out)
    score(out)
    for place, (line, row) in enumerate(zip(lines, written(out), strict=True)):
        if line is bad:
            assert (row["rewards"], row["known_user"]) == (None, None)
            reason = BAD[case][1].split(".*")[-1] if ".*" in BAD[case][1] else ""
            assert re.search(rf"a\.jsonl, line {place + 1}.*{reason}", row["error"])
        else:
            assert row["rewards"] == pytest.approx(next(rewards), abs=CLOSE)
            assert row["error"] is None
            assert row["place"] == json.loads(line)["place"]
    assert json.loads((out / "_manifest.json").read_text())["skipped"] == 5
    score(tmp_path / "none", "none.jsonl")
    assert [row["known_user"] for row in written(tmp_path / "none")] == [None]
    with pytest.raises(PrmError, match="bad rows skipped"):
        score_files(str(run), str(tmp_path / "a.jsonl"), str(out), device="cpu", shard_rows=3)


def test_a_row_that_is_skipped_gives_no_column_its_type(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Ids stay text, and numbers numbers; what a skipped row has instead is JSON text where that fits."""
    rows = [{"user_id": "p0", "n": 1, "prompt": "why?", "response": "fox"}] * 3
    bad = {"user_id": ["p0"], "n": "many", "prompt": "why?", "response": "fox", "only": {"here": 1}}
    write_jsonl(tmp_path / "rows.jsonl", [*rows[:2], bad, rows[2]])
    job = str(run_of("linear")), str(tmp_path / "rows.jsonl"), str(tmp_path / "out")
    found = pq.read_table(score_files(*job, device="cpu", shard_rows=2, on_bad_row="skip"))
    assert found["user_id"].to_pylist() == ["p0", "p0", '["p0"]', "p0"]
    assert found["n"].to_pylist() == [1, 1, None, 1]
    assert found["only"].to_pylist() == [None, None, '{"here": 1}', None]


def test_the_first_bad_row_is_named_whatever_is_wrong(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    """And once it is right, the job goes on in the same folder: nothing had been scored there."""
    good = {"prompt": "why?", "response": "fox"}
    long = {"prompt": "why?", "response": "fox " * 500}
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    write_jsonl(path, [good, long, {"prompt": "why?"}])
    with pytest.raises(DataError, match=r"line 2.*tokens"):
        score_files(str(run_of("linear")), str(path), str(out), device="cpu")
    write_jsonl(path, [good])
    assert len(written(score_files(str(run_of("linear")), str(path), str(out), device="cpu"))) == 1


def test_what_was_wrong_elsewhere_is_not_written_over(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "why?", "response": "fox", "error": "a timeout"}])
    job = str(run_of("linear")), str(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"line 1.*'error'"):
        score_files(*job, str(tmp_path / "out"), device="cpu", on_bad_row="skip")
    assert written(score_files(*job, str(tmp_path / "other"), device="cpu"))[0]["error"] == "a timeout"


def test_another_job_in_the_same_folder_is_refused_by_name(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    rows, out = rows_to_score(8), str(tmp_path / "out")
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    write_jsonl(first, rows)
    write_jsonl(second, rows[1:])
    linear, bayes = str(run_of("linear")), str(run_of("bayes"))
    score_files(linear, str(first), out, device="cpu", shard_rows=4)
    with pytest.raises(PrmError, match=f"{linear}.*{bayes}"):
        score_files(bayes, str(first), out, device="cpu", shard_rows=4)
    with pytest.raises(PrmError, match=r"second\.jsonl.*first\.jsonl"):
        score_files(linear, str(second), out, device="cpu", shard_rows=4)
    with pytest.raises(PrmError, match="another order or layout"):
        score_files(linear, str(first), out, device="cpu", shard_rows=5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(PrmError, match=r"notes\.txt"):
        score_files(linear, str(first), str(tmp_path / "full"), device="cpu")
    with pytest.raises(PrmError, match="is a file"):
        score_files(linear, str(first), str(second), device="cpu")
    (Path(out) / "_manifest.json").write_text("{}")
    with pytest.raises(PrmError, match="damaged"):
        score_files(linear, str(first), out, device="cpu", shard_rows=4)


def test_shards_that_are_not_the_jobs_are_found(
    run_of: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy under the name of another shard is written again; one more than the job has is refused; so is a copy of
    an input file by a link."""
    rows, run, out = rows_to_score(12), str(run_of("linear")), tmp_path / "out"
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    score_files(run, str(path), str(out), device="cpu", shard_rows=4)
    whole = written(out)
    shutil.copy(out / "part-00000.parquet", out / "part-00001.parquet")
    (out / "part-00002.parquet").unlink()  # so that it is not done
    score_files(run, str(path), str(out), device="cpu", shard_rows=4)
    assert written(out) == whole
    assert "part-00001.parquet is another shard" in caplog.text
    shutil.copy(out / "part-00000.parquet", out / "part-00007.parquet")
    (out / "part-00002.parquet").write_bytes(b"PAR1")
    (out / "part-00000.parquet").unlink()
    with pytest.raises(PrmError, match="part-00007"):
        score_files(run, str(path), str(out), device="cpu", shard_rows=4)
    (out / "part-00007.parquet").unlink()
    score_files(run, str(path), str(out), device="cpu", shard_rows=4)
    assert written(out) == whole
    (tmp_path / "rows-again.jsonl").symlink_to(path)
    with pytest.raises(DataError, match="same file"):
        score_files(run, str(tmp_path / "rows*.jsonl"), str(out), device="cpu")


def test_damaged_work_files_are_made_again(
    run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, run, out = rows_to_score(8), run_of("linear"), tmp_path / "out"
    write_jsonl(tmp_path / "rows.jsonl", rows)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("prm.scale.score_files.write_shards", stop)
    monkeypatch.setattr("prm.scale.sort_texts._LOT_BYTES", 1)
    with pytest.raises(KeyboardInterrupt, match="same command"):
        score_files(str(run), str(tmp_path / "rows.jsonl"), str(out), device="cpu", shard_rows=3)
    monkeypatch.undo()
    monkeypatch.setenv("PRM_CACHE", str(tmp_path / "cache"))
    work = sorted((out / "_work").iterdir())
    assert len(work) == 4  # three lots, one group
    for path in work:
        path.write_bytes(path.read_bytes()[:-30])
    score_files(str(run), str(tmp_path / "rows.jsonl"), str(out), device="cpu", shard_rows=3)
    for row, rewards in zip(written(out), expected(run, rows), strict=True):
        assert row["rewards"] == pytest.approx(rewards, abs=CLOSE)


def test_input_that_changes_while_it_is_read_is_refused(
    run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "rows.jsonl", read_texts.read_texts
    write_jsonl(path, rows_to_score(8))

    def changing(*given: object) -> list[Path]:
        write_jsonl(path, rows_to_score(4))
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("prm.scale.score_files.read_texts", changing)
    with pytest.raises(PrmError, match="changed while"):
        score_files(str(run_of("linear")), str(path), str(tmp_path / "out"), device="cpu")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows_to_score(4))
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(PrmError, match="closed"):
        score_files(str(run_of("linear")), str(tmp_path / "rows.jsonl"), str(tmp_path / "closed" / "out"))


def test_a_folder_that_cannot_be_written_is_refused(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows_to_score(4))
    with pytest.raises(PrmError, match="/proc/"):
        score_files(str(run_of("linear")), str(tmp_path / "rows.jsonl"), "/proc/prm-scores/out")


def test_flags_that_do_not_go_together(
    run_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = str(run_of("linear")), str(tmp_path / "rows.jsonl")
    write_jsonl(path, rows_to_score(4))
    for flags in (
        ["--engine", "local"],
        ["--engine", "local", "--input", path],
        ["--engine", "local", "--input", path, "--output", str(tmp_path / "o"), "--workers", "2"],
        ["--engine", "local", "--input", str(tmp_path), "--output", str(tmp_path / "o")],
        ["--engine", "local", "--input", str(tmp_path / "*.csv"), "--output", str(tmp_path / "o")],
        ["--workers", "2", "--input", path],
        ["--on_bad_row", "skip", "--input", path],
    ):
        with pytest.raises(SystemExit) as stop:
            main(["score", run, *flags])
        assert stop.value.code == 2
    assert not (tmp_path / "o").exists()
    assert "Traceback" not in capsys.readouterr().err
