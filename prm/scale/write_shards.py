"""Third pass: the output's Parquet shards, each whole or absent, with the input's rows in their order."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prm.errors import PrmError
from prm.io.disk import write_whole
from prm.io.progress import progress
from prm.io.rows import Row
from prm.io.tables import plain, to_json
from prm.scale.check_texts import Checker
from prm.scale.job import ERROR, Job, Result
from prm.scale.read_texts import Rewards
from prm.scale.requests import Asked
from prm.scale.sort_texts import Portion, Sorted, column, faults_of, filled, portions
from prm.users.index import UserIndex

logger = logging.getLogger(__name__)

_ABOUT = b"prm"


def write_shards(job: Job, result: Result, checker: Checker, found: Sorted, rewards: Sequence[Path]) -> int:
    """Write the shards that are missing, from the rewards in these work files; the number of rows that were skipped.

    Raises `PrmError` if the input has changed since its texts were sorted.
    """
    schema, known = _output_types(job, result, filled(found.columns)), Rewards(rewards, found)
    faults, skipped = faults_of(job, found), 0
    with progress(desc="writing shards", unit="shard", total=len(found.portions)) as bar:
        for number, parsed in enumerate(portions(job, result)):
            rows = _without(parsed, next(faults, {}))
            skipped += sum(bool(asked.fault) for _, asked in rows)
            if number >= len(found.portions) or not _agrees(rows, found.portions[number]):
                raise PrmError(f"{', '.join(map(str, job.inputs))}: changed while it was read; start again")
            if not _is_written(job, number, len(rows)):
                values = iter(known.of(number).tolist())
                _write(job, number, [_finished(result, checker.users, *row, values) for row in rows], schema)
            bar.update()
    return skipped


def _without(rows: Sequence[tuple[Row, Asked]], faults: Mapping[int, str]) -> Sequence[tuple[Row, Asked]]:
    """The rows; those with a fault, by place, have no responses."""
    if not faults:
        return rows
    return [
        (row, asked._replace(responses=[], fault=faults[place]) if place in faults else asked)
        for place, (row, asked) in enumerate(rows)
    ]


def _agrees(rows: Sequence[tuple[Row, Asked]], portion: Portion) -> bool:
    return len(rows) == portion.rows and sum(len(asked.responses) for _, asked in rows) == portion.texts


def _finished(
    result: Result, users: UserIndex, row: Row, asked: Asked, rewards: Iterator[float]
) -> Mapping[str, object]:
    """The output row, with as many of the rewards as it has responses; or with what is wrong with it."""
    if asked.fault:
        return {**(row.values or {}), ERROR: asked.fault}
    own = [next(rewards) for _ in asked.responses]
    return result.finish(row.values or {}, asked, own, asked.user in users)


def _output_types(job: Job, result: Result, inputs: pa.Schema) -> pa.Schema:
    """The columns of the shards: the input's, and those that the command adds, in place of equal names."""
    added = result.columns(inputs.names)
    if job.skips:
        added = added.append(pa.field(ERROR, pa.string()))
    kept = [field for field in inputs if field.name not in {*added.names, *result.dropped}]
    return pa.schema([*kept, *added])


def _write(job: Job, number: int, rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> None:
    rows = [_of_types(row, schema) if row.get(ERROR) and job.skips else row for row in rows]
    columns = {field.name: column([row.get(field.name) for row in rows], field.type) for field in schema}
    about = {"job": job.key, "shard": number, "rows": len(rows)}
    table = pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
    write_whole(job.shard(number), lambda temporary: pq.write_table(table, str(temporary), compression="zstd"))


def _of_types(row: Mapping[str, object], schema: pa.Schema) -> dict[str, object]:
    """A skipped row with JSON text, or nothing, for values that do not have the types of the other rows."""
    values: dict[str, object] = {}
    for field in schema:
        value = row.get(field.name)
        try:
            column([value], field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            value = to_json(plain(value)) if pa.types.is_string(field.type) else None
        values[field.name] = value
    return values


def _is_written(job: Job, number: int, rows: int) -> bool:
    """Whether the shard is there. One that is damaged, or not this one, is said to be written again."""
    path = job.shard(number)
    if not path.exists():
        return False
    try:
        found = pq.ParquetFile(str(path)).schema_arrow.metadata[_ABOUT]
        if json.loads(found) == {"job": job.key, "shard": number, "rows": rows}:
            return True
        fault = "another shard under this name"
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        fault = f"damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    logger.warning("%s is %s: it is written again", path, fault)
    return False
