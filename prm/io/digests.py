"""Digests of the files that a run is loaded from, to refuse files that were damaged or changed since training."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prm.errors import CheckpointError

_BLOCK = 1 << 26  # bytes per thread: a table of a million users has gigabytes
_PIECE = 1 << 20  # bytes in memory at once, per thread


def file_digests(folder: Path) -> dict[str, str]:
    """Digest of each file of trained weights, by its path below the run folder."""
    files = [
        *folder.glob("*.safetensors"),
        *(p for name in ("adapter", "backbone") for p in folder.glob(f"{name}/**/*")),
    ]
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted(files) if path.is_file()}


def check_digests(folder: Path, expected: Mapping[str, str]) -> None:
    """Raise `CheckpointError` if a file is missing or differs from what was written."""
    for name, saved in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, and the run was saved with it: copy it back, or train again")
        if (actual := digest(path)) != saved:
            raise CheckpointError(
                f"{path} is damaged, or was changed after training (digest {actual[:16]}, expected {saved[:16]}): copy "
                "it back, or train again"
            )


def digest_of_values(values: Mapping[str, object]) -> str:
    """Hex digest of a JSON object without its key `digest`; the order of keys does not matter."""
    content = {name: value for name, value in values.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """Hex SHA-256 of the concatenated SHA-256 digests of a file's 64 MiB blocks."""
    starts = range(0, path.stat().st_size, _BLOCK)
    with ThreadPoolExecutor(min(len(starts) or 1, os.cpu_count() or 1)) as threads:
        block_digests = threads.map(lambda start: _block_digest(path, start), starts)
        return hashlib.sha256(b"".join(block_digests)).hexdigest()


def _block_digest(path: Path, start: int) -> bytes:
    block_hash = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        remaining = _BLOCK
        while remaining and (piece := file.read(min(remaining, _PIECE))):
            block_hash.update(piece)
            remaining -= len(piece)
    return block_hash.digest()
