"""Digests of the files that a run is loaded from: what was damaged or changed since it was written is refused."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prm.errors import CheckpointError

_BLOCK = 1 << 26  # bytes that one thread takes in: a table of a million people has gigabytes
_PIECE = 1 << 20  # bytes in memory at once


def file_digests(folder: Path) -> dict[str, str]:
    """Digest of each file that holds what was learnt, by its path below the run folder."""
    files = [
        *folder.glob("*.safetensors"),
        *(p for name in ("adapter", "backbone") for p in folder.glob(f"{name}/**/*")),
    ]
    return {path.relative_to(folder).as_posix(): digest(path) for path in sorted(files) if path.is_file()}


def check_digests(folder: Path, expected: Mapping[str, str]) -> None:
    """Raise `CheckpointError` for a file that is missing, or is not as it was written."""
    for name, known in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, and the run was saved with it: copy it back, or train again")
        if (found := digest(path)) != known:
            raise CheckpointError(
                f"{path} is damaged, or was changed after training (digest {found[:16]}, expected {known[:16]}): copy "
                "it back, or train again"
            )


def digest_of_values(values: Mapping[str, Any]) -> str:
    """Hex digest of a JSON object, whatever the order of its keys; what stands under `digest` is left out."""
    rest = {name: value for name, value in values.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of the SHA-256 of each 64 MiB of a file, in hexadecimal."""
    starts = range(0, path.stat().st_size, _BLOCK)
    with ThreadPoolExecutor(min(len(starts) or 1, os.cpu_count() or 1)) as threads:
        parts = threads.map(lambda start: _block(path, start), starts)
        return hashlib.sha256(b"".join(parts)).hexdigest()


def _block(path: Path, start: int) -> bytes:
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        left = _BLOCK
        while left and (piece := file.read(min(left, _PIECE))):
            found.update(piece)
            left -= len(piece)
    return found.digest()
