"""First pass: check all rows, and sort their texts into groups, so that equal texts lie together.

Texts are sorted in memory, some megabytes at a time, and each lot becomes a work file with a batch for each group. The
group is that of the prompt, so that all responses to one prompt are read together, and its tokens once.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from prm.data.comparison import Message, Prompt, prompt_key
from prm.errors import DataError, PrmError
from prm.io.progress import progress
from prm.io.rows import Row
from prm.io.tables import plain, read_table, to_json
from prm.scale.check_texts import Checker, Text
from prm.scale.job import ERROR, Job, Result
from prm.scale.requests import Asked
from prm.scale.work_files import about, opened, write_batches

_SHARD_CHARACTERS = 1 << 24  # a shard of long rows has fewer
_LOT_BYTES = 1 << 24  # of texts that are sorted in memory
_COLUMNS = b"columns"
JSON = pa.json_(pa.string())  # for a column that no other type fits

TEXTS = pa.schema(
    {
        "prompt_hash": pa.uint64(),
        "key_high": pa.uint64(),
        "key_low": pa.uint64(),
        "prompt": pa.string(),
        "response": pa.string(),
        "user_text": pa.string(),
        "user": pa.string(),
        "portion": pa.int32(),
        "position": pa.int32(),
    }
)


class Portion(NamedTuple):
    """Rows that become one output shard.

    Args:
        rows: number of rows.
        texts: number of responses, all rows together.
    """

    rows: int
    texts: int


@dataclass
class Sorted:
    """What the first pass has written so far.

    Args:
        files: the work files, each with a batch of `TEXTS` for each group.
        portions: of the input, in order.
        groups: bytes of each group's texts.
        columns: the columns of the input rows with their types; those that no type fits hold JSON text.
    """

    files: list[Path] = field(default_factory=list)
    portions: list[Portion] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    columns: pa.Schema = field(default_factory=lambda: pa.schema({}))


def sort_texts(job: Job, result: Result, checker: Checker) -> Sorted:
    """Check all rows and write the work files that are missing.

    Raises `DataError` naming file and row of the first bad one, if the job skips none.
    """
    found, waiting = Sorted(groups=[0] * job.groups), portions(job, result)
    with progress(desc="checking rows", unit="row") as bar:
        while True:
            path, before = job.work / f"texts-{len(found.files):05d}.arrow", len(found.portions)
            is_there = about(path, job.key) is not None
            if not is_there and not _write_lot(path, job, waiting, checker, found):
                return found
            _add(found, path, job)
            new = found.portions[before:]
            if is_there:
                for _ in islice(waiting, len(new)):
                    pass  # checked before
            bar.update(sum(portion.rows for portion in new))


def portions(job: Job, result: Result) -> Iterator[list[tuple[Row, Asked]]]:
    """The input's rows with their requests, in portions of one shard. Raises `DataError` as `sort_texts` does."""
    rows, size = list[tuple[Row, Asked]](), 0
    for path in job.inputs:
        for row in read_table(str(path)):
            try:
                asked = _parsed(row, result, job.skips)
            except DataError:
                if rows:
                    yield rows  # the texts of one of them may be what is wrong first
                raise
            rows.append((row, asked))
            size += sum(map(len, asked.responses)) + len(prompt_key(asked.prompt))
            if len(rows) == job.shard_rows or size > _SHARD_CHARACTERS:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


def faults_of(job: Job, found: Sorted) -> Iterator[dict[int, str]]:
    """What is wrong with the texts of rows that are skipped, by place, of each portion in order."""
    number = 0
    for path in found.files:
        described = _described(path, job)
        shards, faults = described["portions"], described["faults"]
        assert isinstance(shards, list)
        assert isinstance(faults, list)
        for _ in shards:
            yield {place: fault for portion, place, fault in faults if portion == number}
            number += 1


def _described(path: Path, job: Job) -> dict[str, object]:
    """What a work file says of its lot."""
    if (described := about(path, job.key)) is None:
        raise PrmError(f"{path} was removed while the job was running: start it again")
    return described


def _add(found: Sorted, path: Path, job: Job) -> None:
    """Take up what a work file says of its lot."""
    described = _described(path, job)
    with opened(path) as reader:
        found.columns = pa.ipc.read_schema(pa.py_buffer(reader.schema.metadata[_COLUMNS]))
    groups, shards = described["groups"], described["portions"]
    assert isinstance(groups, list)
    assert isinstance(shards, list)
    found.files.append(path)
    found.portions += [Portion(*portion) for portion in shards]
    found.groups = [old + new for old, new in zip(found.groups, groups, strict=True)]


def unpacked_prompt(text: str) -> Prompt:
    """The prompt of a work file."""
    value = json.loads(text)
    return value if isinstance(value, str) else tuple(Message(*message) for message in value)


def types_of(columns: Mapping[str, Sequence[object]]) -> pa.Schema:
    """A type for each column of values; the null type for one without values, JSON text where no type fits."""
    return pa.schema({name: _type_of(values) for name, values in columns.items()})


def filled(columns: pa.Schema) -> pa.Schema:
    """The columns with a type for those without values."""
    return pa.schema({c.name: pa.string() if pa.types.is_null(c.type) else c.type for c in columns})


def _joined(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    """The columns of both, each of a type that holds what is in either: JSON text if there is no other."""
    types = {c.name: c.type for c in one}
    for name, kind in ((c.name, c.type) for c in other):
        types[name] = _common(types.get(name, kind), kind)
    return pa.schema(types)


def column(values: Sequence[object], kind: pa.DataType) -> pa.Array:
    """Values as a column of `types_of` or `common_types`."""
    if kind == JSON:
        return pa.array([None if v is None else to_json(plain(v)) for v in values], JSON.storage_type)
    try:
        return pa.array(values, kind)
    except pa.ArrowInvalid:  # whole numbers too large for a column that has fractions elsewhere
        return pa.array(values).cast(kind, safe=False)


def _parsed(row: Row, result: Result, skips: bool) -> Asked:
    if skips and (row.values or {}).get(ERROR) is not None:
        raise DataError(f"{row.origin}: has a field {ERROR!r}, which the output adds: rename it, or leave it out")
    try:
        if row.values is None:
            raise DataError(row.fault)
        # in tables each row has all columns, those that it does not use without a value
        return result.parse({name: value for name, value in row.values.items() if value is not None})
    except PrmError as error:
        fault = f"{row.origin}: {error}"
        if not skips:
            raise DataError(fault) from None
        return Asked("", [], None, "", fault)


def _write_lot(
    path: Path, job: Job, waiting: Iterator[list[tuple[Row, Asked]]], checker: Checker, before: Sorted
) -> bool:
    """Write the next portions, up to the size of a lot; whether there were any."""
    tables, lot, columns = list[pa.RecordBatch](), list[Portion](), before.columns
    faults, size = list[tuple[int, int, str]](), 0
    while size < _LOT_BYTES and (rows := next(waiting, None)):
        portion = len(before.portions) + len(lot)
        texts, wrong = checker.texts(rows, job.skips)
        tables.append(_table(texts, checker, portion))
        faults += [(portion, place, fault) for place, fault in wrong.items()]
        size += tables[-1].nbytes + sum(map(len, wrong.values()))
        lot.append(Portion(len(rows), len(texts)))
        columns = _joined(columns, types_of(_columns(rows)))
    if not tables:
        return False
    table = pa.Table.from_batches(tables).combine_chunks()
    group = (table["prompt_hash"].to_numpy() % job.groups).astype(np.int64)
    batch = pa.concat_batches(table.take(np.argsort(group, kind="stable")).to_batches() or tables[:1])
    ends = np.bincount(group, minlength=job.groups).cumsum()
    batches = [batch.slice(start, end - start) for start, end in pairwise([0, *ends])]
    schema = TEXTS.with_metadata({_COLUMNS: columns.serialize().to_pybytes()})
    sizes = [batch.nbytes for batch in batches]
    write_batches(path, schema, batches, {"job": job.key, "portions": lot, "groups": sizes, "faults": faults})
    return True


def _table(texts: Sequence[Text], checker: Checker, portion: int) -> pa.RecordBatch:
    """The texts of a portion."""
    known, asked = checker.users, {id(text.asked): text.asked for text in texts}
    prompts = {one: json.dumps(request.prompt, ensure_ascii=False) for one, request in asked.items()}
    columns = [
        *np.frombuffer(b"".join(text.prompt_hash + text.key for text in texts), np.uint64).reshape(-1, 3).T,
        [prompts[id(text.asked)] for text in texts],
        [text.response for text in texts],
        [checker.text_read(text.asked) for text in texts],
        [text.asked.user if text.asked.user in known else None for text in texts],
        np.full(len(texts), portion, np.int32),
        np.arange(len(texts), dtype=np.int32),
    ]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, TEXTS, strict=True)], schema=TEXTS)


def _columns(rows: Sequence[tuple[Row, Asked]]) -> dict[str, list[object]]:
    """The values of all columns; a row without a request has its own in none, since no type need fit them."""
    names = dict.fromkeys(name for row, _ in rows for name in row.values or ())
    return {name: [(row.values or {}).get(name) for row, asked in rows if not asked.fault] for name in names}


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
