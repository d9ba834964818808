"""Score the rows of files into a folder of Parquet shards, with constant memory; `Engine` says where texts are read."""

import logging
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa

from prm.errors import PrmError, counted
from prm.io.disk import make_folder, remove
from prm.io.folders import working_in
from prm.io.interrupts import resumable
from prm.models.backbone_paths import from_anywhere
from prm.models.backbones import device_named
from prm.scale.check_texts import Checker
from prm.scale.job import ERROR, MANIFEST, Job, Result, input_files, open_job, refuse_other_shards
from prm.scale.ray_engine import Task, read_with_ray, require_ray
from prm.scale.read_texts import Read, read_texts, read_with, reader_of
from prm.scale.requests import parse_request, scored_row
from prm.scale.sort_texts import sort_texts
from prm.scale.write_shards import write_shards
from prm.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

Engine = Literal["local", "ray"]
OnBadRow = Literal["stop", "skip"]


def score_files(
    run: str,
    pattern: str,
    output: str,
    engine: Engine = "local",
    backbone: str | None = None,
    device: str | None = None,
    workers: int | None = None,
    result: Result | None = None,
    shard_rows: int = 0,
    on_bad_row: OnBadRow = "stop",
) -> Path:
    """Score all rows of the files; returns the folder of the shards. A killed job goes on where it was.

    Three passes: check all rows and sort their texts, read each different text once, write the shards. Work files as
    large as the texts, packed, lie in the folder until the job is done.

    Args:
        run: a run folder.
        pattern: a file of `read_table`, or a pattern with `*`.
        output: a folder, empty or of the same job.
        backbone: its new name or path, if it was moved.
        device: of the model; chosen if not given.
        workers: of Ray, one for each GPU or else each CPU if not given.
        result: what becomes of the rewards; columns `rewards` (or `reward`) and `known_user` if not given.
        shard_rows: rows of a shard; 8,192 if 0.
        on_bad_row: `skip` gives bad rows no reward, but an `error`, a column that says what is wrong.

    Raises `DataError` naming file and row for the first bad row, before any text is read, if none is skipped, and
    `PrmError` for a folder that holds something else.
    """
    result, folder = result or SCORES, Path(output).expanduser()
    inputs = input_files(pattern)
    read = _engine(engine, run, backbone, device, workers)
    make_folder(folder.parent)
    with working_in(folder) as real, resumable((folder / MANIFEST).exists):
        job = open_job(real, Path(run), backbone, inputs, result.name, shard_rows, on_bad_row == "skip")
        if job.is_done:
            remove(job.work)  # a kill may have left it
            logger.info("%s is done already", folder)
            return folder
        _run(job, result, read)
    return folder


def _run(job: Job, result: Result, read: Read) -> None:
    checker = Checker(job.run, job.backbone)
    found = sort_texts(job, result, checker)
    refuse_other_shards(job, len(found.portions))
    rewards = read_texts(job, found, read)
    skipped = write_shards(job, result, checker, found, rewards)
    shards, texts = zip(*found.portions, strict=True)
    job.finish(shards, sum(texts), skipped)
    remove(job.work)
    what = f"{counted(sum(shards), 'row')} with {counted(sum(texts), 'response')}"
    logger.info("%s: %s in %s", job.folder, what, counted(len(shards), "shard"))
    if skipped:
        logger.warning("%s: %s not scored; column %r says why", job.folder, counted(skipped, "row"), ERROR)


def _engine(engine: Engine, run: str, backbone: str | None, device: str | None, workers: int | None) -> Read:
    if workers is not None and engine != "ray":
        raise PrmError("--workers goes with --engine ray")
    if engine == "ray":
        require_ray()
        moved = from_anywhere(backbone) if backbone is not None else None
        load = partial(reader_of, str(Path(run).resolve()), moved, device)
        return lambda tasks: read_with_ray(
            load, (Task(task, task.texts, task.path.name) for task in tasks), device, workers
        )
    target = device_named(device)
    return read_with(lambda: Scorer.from_pretrained(run, backbone, target))


def _score_columns(inputs: Collection[str]) -> pa.Schema:
    """`rewards` where rows may have several responses, `reward` where they may have one."""
    added: dict[str, pa.DataType] = {}
    if "responses" in inputs:
        added["rewards"] = pa.list_(pa.float32())
    if "response" in inputs:
        added["reward"] = pa.float32()
    return pa.schema({**added, "known_user": pa.bool_()})


SCORES = Result("prm score", parse_request, scored_row, _score_columns)
