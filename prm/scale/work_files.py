"""The work files of a job: Arrow files of numbered batches, each whole or absent, that say whose they are."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from prm.io.disk import make_folder, remove, write_whole

logger = logging.getLogger(__name__)

_ABOUT = b"prm"
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


def write_batches(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], about: Mapping[str, object]
) -> None:
    """Write a file of batches, atomically; `about` is JSON that says what it holds, with the key of its `job`."""
    schema = schema.with_metadata({**(schema.metadata or {}), _ABOUT: json.dumps(about).encode()})

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema, options=_OPTIONS) as writer:
            for batch in batches:
                writer.write_batch(batch)

    make_folder(path.parent)
    write_whole(path, write)


@contextmanager
def opened(path: Path) -> Iterator[pa.ipc.RecordBatchFileReader]:
    """A file of batches, to read one at a time; it is not mapped, so that none of it stays in memory."""
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_file(file) as reader:
        yield reader


def about(path: Path, job: str) -> dict[str, object] | None:
    """What a work file of the job holds; `None` if it is missing. A damaged file, or another job's, is removed."""
    if not path.exists():
        return None
    try:
        with opened(path) as reader:
            found = json.loads(reader.schema.metadata[_ABOUT])
            if isinstance(found, dict) and found.get("job") == job:
                return found
            fault = "of another job"
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        fault = f"damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    logger.warning("%s is %s: it is made again", path, fault)
    remove(path)
    return None
