"""A job: its folder, what it scores and by which run; a job that was killed goes on, another one is refused."""

import glob
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prm.checkpoint.checkpoint import digest as digest_of_run
from prm.errors import DataError, PrmError, counted, some
from prm.io.digests import digest
from prm.io.disk import make_folder, remove
from prm.io.environment import environment
from prm.io.lines import is_packed, unpacked_suffix
from prm.io.missing import no_such
from prm.io.progress import progress
from prm.io.tables import parse_json, write_json
from prm.scale.requests import Asked

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

MANIFEST, WORK = "_manifest.json", "_work"  # readers of Parquet folders skip names that begin with "_"
_FORMAT = 3  # of the work files, and of how texts are cut into lots, parts and tasks
_GROUP_BYTES = 1 << 24  # of input: the texts of a group are in memory at once
_MOST_GROUPS = 4096
ROW_BYTES, _PACKED = 256, 8  # a guess of a row's bytes in Parquet, and of how much smaller a packed file is
_SHARD_ROWS = 8192
ERROR = "error"  # the column that says why a row was skipped


@dataclass(frozen=True)
class Result:
    """What becomes of the rewards.

    Args:
        name: of the command, with all that its rows depend on besides input and run ("rerank, strategy soft:1").
        parse: the request of a row; raises `DataError` naming the field.
        finish: the output row, from the input row, its request, its rewards and whether the user is known.
        columns: the columns that `finish` adds, given the names of those of the input.
        dropped: columns of the input that `finish` leaves out.
    """

    name: str
    parse: Callable[[Mapping[str, object]], Asked]
    finish: Callable[[Mapping[str, object], Asked, list[float], bool], Mapping[str, object]]
    columns: Callable[[Collection[str]], "pa.Schema"]
    dropped: Collection[str] = ()


@dataclass(frozen=True)
class Job:
    """A job in its folder.

    Args:
        inputs: the files of rows, in order.
        groups: number of groups that texts are sorted into.
        shard_rows: rows of an output shard, at most.
        skips: whether bad rows are skipped: in the output they have no reward, but an `error`.
        key: digest of all that the output depends on; every file that the job writes holds it.
    """

    folder: Path
    run: Path
    backbone: str | None
    inputs: tuple[Path, ...]
    groups: int
    shard_rows: int
    skips: bool
    key: str
    record: Mapping[str, object] = field(repr=False)

    @property
    def work(self) -> Path:
        """Folder of what is needed until the job is done."""
        return self.folder / WORK

    def shard(self, number: int) -> Path:
        """Path of an output shard."""
        return self.folder / f"part-{number:05d}.parquet"

    @property
    def is_done(self) -> bool:
        """Whether all shards were written, and are still there."""
        shards = self.record.get("shards")
        return isinstance(shards, list) and all(self.shard(i).exists() for i in range(len(shards)))

    def finish(self, shards: Sequence[int], texts: int, skipped: int) -> None:
        """Write the manifest of the finished job: its shards with their numbers of rows, and what was read of them."""
        listed = [{"file": self.shard(i).name, "rows": rows} for i, rows in enumerate(shards)]
        found = {"rows": sum(shards), "texts": texts, "skipped": skipped, "shards": listed}
        write_json(self.folder / MANIFEST, {**self.record, **found})


def input_files(pattern: str) -> tuple[Path, ...]:
    """The files that `--input` names: one file, or those that match a pattern with `*`, in the order of their names.

    Raises `DataError` if there is none, for a folder, and for a file that matches twice (by a link).
    """
    path = Path(pattern).expanduser()
    found = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise DataError(f"{pattern}: no file matches" if glob.has_magic(pattern) else no_such(pattern, "file"))
    if folders := [file for file in found if file.is_dir()]:
        raise DataError(f"{folders[0]} is a folder: name its files, as in '{folders[0] / '*.parquet'}'")
    seen: dict[Path, Path] = {}
    for file in found:
        if other := seen.get(file.resolve()):
            raise DataError(f"{file} is the same file as {other}: its rows would be scored twice")
        seen[file.resolve()] = file
    return tuple(found)


def open_job(
    folder: Path,
    run: Path,
    backbone: str | None,
    inputs: Sequence[Path],
    name: str,
    shard_rows: int = 0,
    skips: bool = False,
) -> Job:
    """Begin a job in an empty or new folder, or go on with it.

    Args:
        name: `Result.name`.
        shard_rows: rows of a shard; 8,192 if 0.
        skips: as of `Job`.

    Raises `PrmError` for a folder that holds something else, or scores of another run, other input or another command.
    """
    if folder.exists() and not folder.is_dir():
        raise PrmError(f"{folder} is a file: --output names the folder of the shards")
    shown = progress(inputs, desc="reading the files' digests", unit="file")
    files = [{"file": str(file), "bytes": file.stat().st_size, "digest": digest(file)} for file in shown]
    size = sum(map(_unpacked_bytes, inputs))
    layout = {
        "format": _FORMAT,
        "groups": groups_for(size),
        "shard_rows": shard_rows or _SHARD_ROWS,
    }
    name += ", bad rows skipped" if skips else ""
    identity = {"command": name, "run": digest_of_run(run), "input": [f["digest"] for f in files], **layout}
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    record: dict[str, object] = {"job": key, "command": name, "run": str(run), "run_digest": identity["run"]}
    record |= {"input": files, **layout, **environment()}
    manifest = folder / MANIFEST
    if manifest.exists():
        record = _known_or_new(manifest, record)
    elif folder.exists() and (others := _names(folder)):
        raise PrmError(f"{folder} is not empty, and not a folder of scores: it holds {some(others)}; name another one")
    make_folder(folder)
    if not manifest.exists():
        write_json(manifest, record)
    return Job(folder, run, backbone, tuple(inputs), layout["groups"], layout["shard_rows"], skips, key, record)


def groups_for(size: int) -> int:
    """Number of groups of so many bytes of input."""
    return min(_MOST_GROUPS, 1 + size // _GROUP_BYTES)


def _unpacked_bytes(path: Path) -> int:
    """A guess of the bytes of a file's texts: a Parquet file may hold a text once for many rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size * (_PACKED if is_packed(path) else 1)
    if unpacked_suffix(path) == ".parquet" and not is_packed(path):
        with suppress(pa.ArrowException, OSError):  # whoever reads it says what is wrong
            return max(size, pq.read_metadata(str(path)).num_rows * ROW_BYTES)
    return size


def _names(folder: Path) -> list[str]:
    """What is in a folder, but for hidden files, which killed commands leave."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _known_or_new(manifest: Path, asked: dict[str, object]) -> dict[str, object]:
    """As `_known`; another job is begun anew that ended before a text was read, as one with a bad row does."""
    folder = manifest.parent
    try:
        return _known(manifest, asked)
    except PrmError:
        if any(folder.glob("*.parquet")) or any((folder / WORK).glob("rewards-*")):
            raise
    logger.info("%s: begun anew, as nothing had been scored there", folder)
    remove(folder / WORK)
    write_json(manifest, asked)
    return asked


def _known(manifest: Path, asked: Mapping[str, object]) -> dict[str, object]:
    """The record of a job that was begun. Raises `PrmError` if it is another one than `asked`."""
    folder = manifest.parent
    try:
        found = parse_json(manifest.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
        old_files = {str(f["digest"]): str(f["file"]) for f in found["input"]}  # type: ignore[index, union-attr, call-overload]
        old_run, old_name = f"{found['run']} ({found['run_digest']})", found["command"]
    except (ValueError, KeyError, TypeError) as error:
        raise PrmError(f"{manifest} is damaged ({error}): name another --output, or remove {folder}") from None
    if found.get("job") == asked["job"]:
        return dict(found)
    advice = "name another --output"
    if found["run_digest"] != asked["run_digest"]:
        raise PrmError(f"{folder} holds scores by {old_run}; this is {asked['run']} ({asked['run_digest']}): {advice}")
    if old_name != asked["command"]:
        raise PrmError(f"{folder} holds the output of {old_name!r}, and this is {asked['command']!r}: {advice}")
    inputs: list[Mapping[str, object]] = asked["input"]  # type: ignore[assignment]
    new_files = {str(f["digest"]): str(f["file"]) for f in inputs}
    if new_files.keys() != old_files.keys():
        new = [name for key, name in new_files.items() if key not in old_files]
        gone = [name for key, name in old_files.items() if key not in new_files]
        said = "; ".join(
            f"{what}: {some(names)}" for what, names in (("new or changed", new), ("missing", gone)) if names
        )
        raise PrmError(f"{folder} holds scores of other input ({said}): {advice}")
    raise PrmError(f"{folder} holds the same work in another order or layout of shards: {advice}")


def refuse_other_shards(job: Job, shards: int) -> None:
    """Raise `PrmError` if there are files in the folder that are none of the job's."""
    own = {MANIFEST, WORK, *(job.shard(i).name for i in range(shards))}
    if others := [name for name in _names(job.folder) if name not in own]:
        what = counted(shards, "shard")
        raise PrmError(f"{job.folder} has files that are none of this job's {what}: {some(others)}; move them away")
