"""Every kind of feedback from every format, and whatever else may stand in a file."""

import contextlib
import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, Message
from prm.data.sources import read_feedback
from prm.data.splits import when
from prm.errors import DataError
from prm.io.tables import write_jsonl
from tests.conftest import read_log

COMMON: dict[str, Any] = {"user_id": "ann é", "prompt": 'a, "b"\nc', "weight": 2.0, "time": "2024-05-01"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs": [
        COMMON | {"chosen": "x\r\ny", "rejected": "z", "p_chosen": 0.75, "user_text": None},
        COMMON | {"chosen": "p", "rejected": "q", "p_chosen": 0.25, "user_text": "née"},
    ],
    "ratings": [COMMON | {"response": f"r {i}", "rating": float(i)} for i in range(4)],
    "thumbs": [COMMON | {"response": f"r {i}", "label": i % 2 == 0} for i in range(4)],
    "picks": [
        COMMON | {"responses": ["x", "y, z"], "chosen": "y, z"},
        COMMON | {"responses": ["x", "w"], "chosen": "tie"},
    ],
    "rankings": [COMMON | {"responses": ["x", "y", "z"], "ranks": [2, 1, 2]}],
}


def cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def as_csv(rows: list[dict[str, Any]], path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)


WRITERS: dict[str, Callable[[list[dict[str, Any]], Path], Any]] = {
    "log.jsonl": lambda rows, path: write_jsonl(path, rows),
    "log.jsonl.gz": lambda rows, path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode())),
    "log.csv": as_csv,
    "log.tsv": lambda rows, path: as_csv(rows, path, "\t"),
    "log.parquet": lambda rows, path: pq.write_table(pa.Table.from_pylist(rows), path),
    "folder": lambda rows, path: Dataset.from_list(rows).save_to_disk(str(path)),
}


@pytest.mark.parametrize("source", ROWS)
def test_the_same_rows_in_every_format_are_the_same_comparisons(tmp_path: Path, source: str) -> None:
    found = {}
    for name, write in WRITERS.items():
        write(ROWS[source], tmp_path / name)
        found[name] = read_log(tmp_path / name, source)
    assert all(comparisons == found["log.jsonl"] for comparisons in found.values())
    assert len(found["log.jsonl"]) >= 2
    assert {(c.user_id, c.prompt, c.weight, c.time) for c in found["log.csv"]} == {tuple(COMMON.values())}


def parquet(folder: Path, table: pa.Table | list[dict[str, Any]]) -> Path:
    path = folder / "log.parquet"
    pq.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pylist(table), path)
    return path


def refusal(path: Path, source: str = "pairs", **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_log(path, source, **more)
    return str(caught.value)


PAIR: dict[str, Any] = {"user_id": "ann", "prompt": "tea?", "chosen": "yes", "rejected": "no"}


def test_parquet_lists_of_structs_are_messages(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    row = {"user_id": "u", "chosen": turns, "rejected": [turns[0], turns[1] | {"content": "no"}]}
    assert read_log(parquet(tmp_path, [row])) == [Comparison("u", (Message("user", "hi"),), "yes", "no")]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("prompt", [["tea?"]], "'prompt[0]' must be an object with 'role' and 'content'"),
        ("prompt", {"text": "tea?"}, "'prompt' must be text or a list of messages, got an object"),
        ("chosen", {"text": "yes"}, "'chosen' must be text or a list of messages, got an object"),
        ("chosen", b"yes", "'chosen' must be text or a list of messages, got bytes"),
        ("chosen", datetime(2024, 1, 1), "'chosen' must be text or a list of messages, got datetime 2024-01-01"),
        ("user_id", ["ann"], "'user_id' must be text, got a list"),
        ("user_id", True, "'user_id' must be text, got true/false"),
        ("user_id", 7.0, "'user_id' is the number 7.0; ids are text or whole numbers; pandas"),
        ("user_id", float("nan"), "field 'user_id' is missing"),
        ("weight", float("inf"), "'weight' must be a finite number, got inf"),
        ("time", [1], "'time' must be a number, got a list"),
    ],
)
def test_other_types_in_a_parquet_column_are_refused_by_row_and_field(
    tmp_path: Path, field: str, value: Any, said: str
) -> None:
    path = parquet(tmp_path, [PAIR | {field: value}])
    message = refusal(path)
    assert message.startswith(f"{path}, row 1: ")
    assert said in message


def test_nothing_in_a_numeric_parquet_column_is_the_default(tmp_path: Path) -> None:
    weights = (2.0, float("nan"), None)
    path = parquet(tmp_path, [PAIR | {"weight": weight, "time": i} for i, weight in enumerate(weights)])
    assert [c.weight for c in read_log(path)] == [2.0, 1.0, 1.0]


def test_a_missing_parquet_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = parquet(tmp_path, [{"user_id": "u", "prompt": "q", "winner": "a"}])
    message = (
        f"{path}, row 1: fields 'chosen', 'rejected' are missing; the row has 'user_id', 'prompt', 'winner': name "
    )
    assert refusal(path).startswith(message)


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        (pa.timestamp("s"), "2024-05-01T12:30:00"), (pa.timestamp("ns"), "2024-05-01T12:30:00"),
        (pa.timestamp("us", "UTC"), "2024-05-01T12:30:00+00:00"), (pa.date32(), "2024-05-01"),
    ],
)  # fmt: skip
def test_parquet_dates_are_iso_text(tmp_path: Path, kind: pa.DataType, moment: str) -> None:
    times = pa.array([datetime(2024, 5, 1, 12, 30)], pa.timestamp("s")).cast(kind)
    table = pa.Table.from_pylist([PAIR]).append_column("time", times)
    (c,) = read_log(parquet(tmp_path, table))
    assert c.time == moment
    expected = datetime(2024, 5, 1, 12, 30, tzinfo=UTC) if "T" in moment else datetime(2024, 5, 1, tzinfo=UTC)
    assert when(c) == expected.timestamp()


def test_a_column_of_mixed_types_is_refused_where_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_jsonl(path, [PAIR, PAIR | {"time": 3}, PAIR | {"chosen": 3}])
    fault = f"{path}, line 3: 'chosen' must be text or a list of messages, got int 3"
    assert refusal(path) == f"{fault}; 'data.on_bad_row: skip' leaves such rows out and lists them"


def test_a_bad_row_of_a_csv_is_listed_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,prompt,chosen,rejected\na,b,c\na,b,c,d\na,,c,d\n")
    feedback = read_feedback(FeedbackConfig(path=str(path), on_bad_row="skip"))
    assert feedback.rows == {"used": 1, "bad": 2}
    assert [row["row"] for row in feedback.skipped] == [
        "a,b,c",
        {"user_id": "a", "prompt": None, "chosen": "c", "rejected": "d"},
    ]


def test_a_table_that_breaks_off_is_refused_even_with_bad_rows_skipped(tmp_path: Path) -> None:
    """Where the next row begins is anybody's guess."""
    path = tmp_path / "log.csv"
    path.write_text('user_id,prompt,chosen,rejected\na,b,c,d\na,"b,c,d\na,b,c,d\n')
    assert f"{path}, line 3: not valid CSV from here on" in refusal(path, on_bad_row="skip")


@pytest.mark.parametrize("name", ["log.jsonl", "log.csv", "log.parquet"])
def test_a_hundred_thousand_rows_are_read_in_time_that_grows_with_them(tmp_path: Path, name: str) -> None:
    """A tenth of that here, with columns that nobody reads; ten times as many take ten times as long."""
    rows = [PAIR | {"prompt": f"q {i}", "model_a": "m", "model_b": "n", "language": "en"} for i in range(10_000)]
    WRITERS[name](rows, tmp_path / name)
    assert len(read_log(tmp_path / name)) == 10_000


SOURCES = [*ROWS]
TEXT = st.text(st.characters(), max_size=5)  # halves of surrogates included
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from(["user", "assistant", "tie"])
NAMES = TEXT | st.sampled_from(["role", "content"])
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(NAMES, inner, max_size=3)
        | st.lists(st.fixed_dictionaries({"role": inner, "content": inner}), max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "user_id", "prompt", "chosen", "rejected", "user_text", "p_chosen", "weight", "time", "metadata",
        "chosen_first", "response", "completion", "rating", "label", "responses", "ranks", "x", "y",
    ]
)  # fmt: skip
SETTINGS = st.fixed_dictionaries(
    {
        "source": st.sampled_from([*SOURCES, "auto"]),
        "anonymous": st.booleans(),
        "ties": st.sampled_from(["keep", "drop"]),
        "max_pairs": st.integers(1, 3),
        "columns": st.just({}) | st.dictionaries(FIELDS, st.sampled_from(["x", ["x", "y"], ["x"]]), max_size=2),
        "metadata": st.lists(st.sampled_from(["x", "y", "weight"]), max_size=2),
    }
)


def read_or_refuse(path: Path, config: dict[str, Any]) -> None:
    """Counts add up, or it is a `DataError` that names the file; any other error escapes and fails the test."""
    for on_bad_row in ("skip", "stop"):
        try:
            feedback = read_feedback(FeedbackConfig(path=str(path), on_bad_row=on_bad_row, **config))
        except DataError as error:
            named = str(error).startswith((str(path), "config key 'data.columns'"))
            assert named, str(error)  # noqa: PT017
            continue
        assert feedback.rows["used"] >= 1
        assert feedback.pairs["kept"] == len(feedback.comparisons) >= 1
        assert feedback.rows["bad"] == len(feedback.skipped)
        assert on_bad_row == "skip" or not feedback.skipped
        write_jsonl(path.parent / "skipped.jsonl", feedback.skipped)
        write_jsonl(path.parent / "kept.jsonl", feedback.comparisons)
        if not config["anonymous"]:  # nameless ones may be said twice, which a log with names drops
            assert read_log(path.parent / "kept.jsonl") == feedback.comparisons


def with_changes(changes: Any) -> Any:
    return st.tuples(st.sampled_from(SOURCES), st.integers(0, 3), changes).map(
        lambda drawn: ROWS[drawn[0]][drawn[1] % len(ROWS[drawn[0]])] | drawn[2]
    )


GOOD = st.sampled_from([row for rows in ROWS.values() for row in rows])
LOGS = st.lists(GOOD | with_changes(st.dictionaries(FIELDS, JSON, min_size=1, max_size=2)), min_size=1, max_size=5)
FUZZ = settings(derandomize=True, deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))


@FUZZ
@given(LOGS, SETTINGS)
def test_arbitrary_values_are_read_or_refused(rows: list[dict[str, Any]], config: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        read_or_refuse(path, config)


@FUZZ
@given(LOGS, SETTINGS, st.sampled_from([",", "\t"]))
def test_arbitrary_cells_are_read_or_refused(
    rows: list[dict[str, Any]], config: dict[str, Any], delimiter: str
) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names, delimiter=delimiter)
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("log.csv" if delimiter == "," else "log.tsv")
        path.write_bytes(out.getvalue().encode(errors="replace"))
        read_or_refuse(path, config)


HEADER = "user_id,prompt,chosen,rejected,response,rating,label,responses,ranks\n"
CSV_TEXT = st.text(st.sampled_from('ab1,"\n\r\t[]{}\x00 \u2028;'), max_size=60)


@FUZZ
@given(CSV_TEXT.map(str.encode) | st.binary(max_size=60), SETTINGS, st.booleans())
def test_arbitrary_text_of_a_csv_is_read_or_refused(content: bytes, config: dict[str, Any], headed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_bytes(HEADER.encode() * headed + content)
        read_or_refuse(path, config)


COLUMN_TYPES = [
    pa.string(), pa.large_string(), pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.binary(),
    pa.timestamp("ns"), pa.timestamp("s", "UTC"), pa.date32(), pa.time64("us"), pa.duration("s"),
    pa.decimal128(9, 2), pa.list_(pa.string()), pa.list_(pa.list_(pa.int8())), pa.map_(pa.string(), pa.string()),
    pa.struct([("role", pa.string()), ("content", pa.string())]),
    pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), pa.null(),
    pa.dictionary(pa.int8(), pa.string()),
]  # fmt: skip


def column(kind: pa.DataType, n: int) -> pa.Array:
    """Some values of the type, the last one missing."""
    if pa.types.is_dictionary(kind):
        return pa.array(["a", "b", "c", None][:n]).dictionary_encode()
    for value in (
        *([{"role": "user", "content": "hi"}], {"role": "user", "content": "hi"}, [("k", "v")], [[1]], ["x", "y"]),
        *("up", 1, 0.5, True, b"\xff", datetime(2024, 1, 1)),
    ):
        with contextlib.suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
            return pa.array([*[value] * (n - 1), None], kind)
    return pa.nulls(n, kind)


@FUZZ
@given(st.dictionaries(FIELDS, st.sampled_from(COLUMN_TYPES), min_size=1, max_size=3), SETTINGS)
def test_arbitrary_types_of_columns_are_read_or_refused(types: dict[str, pa.DataType], config: dict[str, Any]) -> None:
    rows = (ROWS["pairs" if config["source"] == "auto" else config["source"]] * 4)[:4]
    table = pa.Table.from_pylist(rows)
    for name, kind in types.items():
        place = table.schema.get_field_index(name)
        values = column(kind, len(rows))
        table = table.append_column(name, values) if place < 0 else table.set_column(place, name, values)
    with tempfile.TemporaryDirectory() as folder:
        read_or_refuse(parquet(Path(folder), table), config)


@FUZZ
@given(st.binary(max_size=80), st.sampled_from(["log.jsonl", "log.jsonl.gz", "log.parquet", "log.tsv.gz"]), SETTINGS)
def test_arbitrary_bytes_are_read_or_refused(content: bytes, name: str, config: dict[str, Any]) -> None:
    lines = json.dumps(PAIR).encode() + b"\n" + content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
        read_or_refuse(path, config)


@pytest.mark.parametrize(
    ("ids", "faulty"),
    [
        (["101.0", "7.00", "anna"], True),
        (["1.15e+18", "-2.0"], True),
        (["101.0", "102"], False),
        (["101.0", "1.5"], False),
        (["v1.0", "9.0a"], False),
    ],
)
def test_whole_ids_that_a_program_wrote_as_floats_are_refused(tmp_path: Path, ids: list[str], faulty: bool) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,prompt,chosen,rejected\n" + "".join(f"{user},q,a,b\n" for user in ids), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2: 'user_id' is '.*Int64") if faulty else contextlib.nullcontext():
        assert [c.user_id for c in read_feedback(FeedbackConfig(path=str(path))).comparisons] == ids


@pytest.mark.parametrize(
    ("columns", "faulty"),
    [
        ({"chosen": "a", "rejected": "a"}, True),
        ({"chosen": "rejected"}, True),
        ({"chosen": "rejected", "rejected": "chosen"}, False),
        ({"user_text": "user_id"}, True),
    ],
)
def test_one_column_is_not_read_as_two_fields(
    tmp_path: Path, columns: dict[str, str | list[str]], faulty: bool
) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,prompt,chosen,rejected,a\nu,q,x,y,z\n", encoding="utf-8")
    with pytest.raises(DataError, match="reads the column") if faulty else contextlib.nullcontext():
        read_feedback(FeedbackConfig(path=str(path), source="pairs", columns=columns))


def test_users_without_a_comparison_are_named(tmp_path: Path) -> None:
    """Of a bad row, and of responses that the user rated alike."""
    path = tmp_path / "log.jsonl"
    rated: list[tuple[str, str, object]] = [
        ("ann", "a", 1),
        ("ann", "b", 2),
        ("bob", "a", 3),
        ("bob", "b", 3),
        ("cat", "a", "?"),
    ]
    write_jsonl(path, [{"user_id": user, "prompt": "q", "response": r, "rating": n} for user, r, n in rated])
    found = read_feedback(FeedbackConfig(path=str(path), source="ratings", on_bad_row="skip"))
    assert found.without == ["bob", "cat"]
