"""First pass: check all rows, and sort their texts into groups, so that equal texts lie together.

A portion of the input becomes one work file with a batch for each group. The group is that of the prompt, so that all
responses to one prompt are read together, and its tokens once. What is in memory is one portion.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from prm.checkpoint.checkpoint import read_config, read_users
from prm.data.comparison import Message, Prompt, prompt_key
from prm.errors import DataError, PrmError
from prm.io.progress import progress
from prm.io.rows import Row
from prm.io.tables import plain, read_table, to_json
from prm.scale.job import Job, Result
from prm.scale.requests import Asked
from prm.scale.work_files import about, opened, write_batches
from prm.training.unreadable_rows import encoder_of_run

_SHARD_CHARACTERS = 1 << 24  # a shard of long rows has fewer
_COLUMNS = b"columns"
JSON = pa.json_(pa.string())  # for a column that no other type fits

_TEXTS = pa.schema(
    {
        "key": pa.binary(16),
        "prompt": pa.string(),
        "response": pa.string(),
        "user_text": pa.string(),
        "user": pa.string(),
        "position": pa.int32(),
    }
)


@dataclass(frozen=True)
class Portion:
    """Rows that become one output shard.

    Args:
        rows: number of rows.
        texts: number of responses, all rows together.
        groups: number of them in each group.
        columns: the columns of the input rows with their types; those that no type fits hold JSON text.
    """

    rows: int
    texts: int
    groups: Sequence[int]
    columns: pa.Schema


class Checker:
    """Checks requests as `Scorer` would, without its weights, and gives each text the key that it is read by.

    Texts are read once for all users by linear heads, else once for each user; whoever the run does not know is the
    generic user.
    """

    def __init__(self, run: Path, backbone: str | None):
        settings = read_config(run).settings
        self._encoder, self.users = encoder_of_run(run, backbone), read_users(run)
        self._reads_users = settings.reward is None or settings.reward.form != "linear_head"
        self._reads_text = settings.user_text == "prompt"
        self._checked: set[bytes] = set()

    def text_read(self, asked: Asked) -> str:
        """The part of the user's text that is read before the prompt."""
        return asked.user_text if self._reads_text else ""

    def begin_portion(self) -> None:
        """Forget which texts were checked."""
        self._checked.clear()

    def key(self, asked: Asked, response: str) -> bytes:
        """The 16-byte key of a text. Raises `DataError` if it does not fit."""
        row = self.users.row(asked.user) if self._reads_users else 0
        key = _digest(prompt_key(asked.prompt), response, self.text_read(asked), str(row))
        if key not in self._checked:
            self._encoder.encode(asked.prompt, response, 0, self.text_read(asked))
            self._checked.add(key)
        return key


def sort_texts(job: Job, result: Result, checker: Checker) -> list[Portion]:
    """Check all rows and write the work files that are missing; the portions, in order.

    Raises `DataError` naming file and row of the first bad one.
    """
    found = []
    with progress(desc="checking rows", unit="row") as bar:
        for number, rows in enumerate(portions(job, result)):
            path = texts_path(job, number)
            if about(path, job.key) is None:
                _write_portion(path, job, rows, checker)
            found.append(read_portion(path, job))
            bar.update(len(rows))
    return found


def portions(job: Job, result: Result) -> Iterator[list[tuple[Row, Asked]]]:
    """The input's rows with their requests, in portions of one shard. Raises `DataError` as `sort_texts` does."""
    rows, size = list[tuple[Row, Asked]](), 0
    for path in job.inputs:
        for row in read_table(str(path)):
            asked = _parsed(row, result)
            rows.append((row, asked))
            size += sum(map(len, asked.responses)) + len(prompt_key(asked.prompt))
            if len(rows) == job.shard_rows or size > _SHARD_CHARACTERS:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


def texts_path(job: Job, number: int) -> Path:
    """The work file of a portion."""
    return job.work / f"texts-{number:05d}.arrow"


def read_portion(path: Path, job: Job) -> Portion:
    """What the work file of a portion says of it."""
    found = about(path, job.key)
    if found is None:
        raise PrmError(f"{path} was removed while the job was running: start it again")
    with opened(path) as reader:
        columns = pa.ipc.read_schema(pa.py_buffer(reader.schema.metadata[_COLUMNS]))
    rows, groups = found["rows"], found["groups"]
    assert isinstance(rows, int)
    assert isinstance(groups, list)
    return Portion(rows, sum(groups), groups, columns)


def unpacked_prompt(text: str) -> Prompt:
    """The prompt of a work file."""
    value = json.loads(text)
    return value if isinstance(value, str) else tuple(Message(*message) for message in value)


def types_of(columns: Mapping[str, Sequence[object]]) -> pa.Schema:
    """A type for each column of values; the null type for one without values, JSON text where no type fits."""
    return pa.schema({name: _type_of(values) for name, values in columns.items()})


def common_types(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The columns of all portions, each of a type that holds what is in all of them: JSON text if there is no other."""
    types: dict[str, pa.DataType] = {}
    for field in (field for schema in schemas for field in schema):
        types[field.name] = _common(types.get(field.name, field.type), field.type)
    return pa.schema({name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()})


def column(values: Sequence[object], kind: pa.DataType) -> pa.Array:
    """Values as a column of `types_of` or `common_types`."""
    if kind == JSON:
        return pa.array([None if v is None else to_json(plain(v)) for v in values], JSON.storage_type)
    try:
        return pa.array(values, kind)
    except pa.ArrowInvalid:  # whole numbers too large for a column that has fractions elsewhere
        return pa.array(values).cast(kind, safe=False)


def _parsed(row: Row, result: Result) -> Asked:
    if row.values is None:
        raise DataError(f"{row.origin}: {row.fault}")
    try:
        # in tables each row has all columns, those that it does not use without a value
        return result.parse({name: value for name, value in row.values.items() if value is not None})
    except PrmError as error:
        raise DataError(f"{row.origin}: {error}") from None


def _write_portion(path: Path, job: Job, rows: Sequence[tuple[Row, Asked]], checker: Checker) -> None:
    checker.begin_portion()
    texts: list[tuple[int, bytes, Asked, str, int]] = []
    for row, asked in rows:
        group = int.from_bytes(_digest(prompt_key(asked.prompt), checker.text_read(asked))[:8]) % job.groups
        try:
            for response in asked.responses:
                texts.append((group, checker.key(asked, response), asked, response, len(texts)))
        except PrmError as error:
            raise DataError(f"{row.origin}: {error}") from None
    by_group = {
        group: list(inside) for group, inside in groupby(sorted(texts, key=lambda t: (t[0], t[4])), lambda t: t[0])
    }
    schema = _TEXTS.with_metadata({_COLUMNS: types_of(_columns([row for row, _ in rows])).serialize().to_pybytes()})
    batches = (_batch(by_group.get(group, ()), checker) for group in range(job.groups))
    counts = [len(by_group.get(group, ())) for group in range(job.groups)]
    write_batches(path, schema, batches, {"job": job.key, "rows": len(rows), "groups": counts})


def _batch(texts: Sequence[tuple[int, bytes, Asked, str, int]], checker: Checker) -> pa.RecordBatch:
    known = checker.users
    columns = [
        [key for _, key, _, _, _ in texts],
        [json.dumps(asked.prompt, ensure_ascii=False) for _, _, asked, _, _ in texts],
        [response for _, _, _, response, _ in texts],
        [checker.text_read(asked) for _, _, asked, _, _ in texts],
        [asked.user if asked.user in known else None for _, _, asked, _, _ in texts],
        np.array([position for *_, position in texts], np.int32),
    ]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, _TEXTS, strict=True)], schema=_TEXTS)


def _columns(rows: Sequence[Row]) -> dict[str, list[object]]:
    names = dict.fromkeys(name for row in rows for name in row.values or ())
    return {name: [(row.values or {}).get(name) for row in rows] for name in names}


def _type_of(values: Sequence[object]) -> pa.DataType:
    try:
        return pa.array(values).type
    except (pa.ArrowException, TypeError, ValueError, OverflowError):  # also a lone surrogate
        return JSON


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if JSON in (one, other):
        return JSON
    try:
        schemas = [pa.schema({"x": kind}) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return JSON


def _digest(*parts: str) -> bytes:
    """16 bytes of the parts, which cannot run into each other."""
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:16]
