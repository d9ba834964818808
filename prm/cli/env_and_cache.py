"""`prm env` describes the installation, `prm cache` what is in the cache folder."""

import json
from argparse import Namespace
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypedDict

from prm.errors import PrmError, some
from prm.io.disk import cache_dir
from prm.models.backbone_paths import embedded_source

if TYPE_CHECKING:
    from prm.features.cache_folder import Entry

_UNITS = ("B", "kB", "MB", "GB", "TB")


def env_command(args: Namespace) -> None:
    """Print versions, the machine, the cache folder and the commit."""
    from prm.io.environment import description

    described = description() | {"embedded_model": _embedded()}
    if args.json:
        print(json.dumps(described))
        return
    versions = described.pop("versions")
    assert isinstance(versions, dict)
    for name, value in {"personalized-rm": described.pop("version"), **described, **versions}.items():
        print(f"{name:16}{'-' if value is None else value}")


def _embedded() -> str:
    """Where the embedded model lies, or how it is installed."""
    try:
        return str(embedded_source())
    except PrmError as error:
        return str(error)


def cache_command(args: Namespace) -> None:
    """List what is in the cache folder, or remove it."""
    from prm.features.cache_folder import clear, entries, foreign

    known = entries()
    chosen = [entry for entry in known if not args.kinds or entry.kind in args.kinds]
    others = [str(path.relative_to(cache_dir())) for path in foreign(known)]
    if args.action == "list":
        _list(chosen, others, args.json)
        return
    removed, busy = clear(chosen)
    if args.json:
        print(json.dumps({"removed": [_row(entry) for entry in removed], "in_use": [_row(entry) for entry in busy]}))
        return
    for entry in removed:
        print(f"removed {entry.kind} {entry.folder} ({in_bytes(entry.bytes)})")
    for entry in busy:
        print(f"not removed: {entry.folder} is in use by another command")
    if others:
        print(f"not removed: {some(others)}, which this library did not write")
    print(f"{cache_dir()}: {in_bytes(sum(entry.bytes for entry in removed))} removed")


def _list(chosen: "Sequence[Entry]", others: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folder": str(cache_dir()), "entries": [_row(entry) for entry in chosen], "others": others}))
        return
    from prm.report import show, table

    rows = [
        [row["kind"], row["path"], in_bytes(row["bytes"]), row["last_used"].replace("T", " ")]
        for row in map(_row, chosen)
    ]
    title = f"{cache_dir()}: {in_bytes(sum(entry.bytes for entry in chosen))}"
    show(table(title, ["kind", "path", "size", "last use"], rows, numeric=2))
    if others:
        show(f"not written by this library: {some(others)}")


class _Row(TypedDict):
    kind: str
    path: str
    bytes: int
    last_used: str


def _row(entry: "Entry") -> _Row:
    last = datetime.fromtimestamp(entry.last_used).isoformat(timespec="minutes")
    path = str(entry.folder.relative_to(cache_dir()))
    return {"kind": entry.kind, "path": path, "bytes": entry.bytes, "last_used": last}


def in_bytes(number: int) -> str:
    """A number of bytes with its unit: "512 B", "1.5 MB"; a kilobyte is 1,000 bytes."""
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 1 if unit and value < 99.95 else 0
    return f"{value:.{digits}f} {_UNITS[unit]}"
