"""Reads the JSON files of runs and checks their types; errors name the file and say what to do.

Keys that are not used are not checked. Does not import torch.
"""

import os
import types
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from prm.checks import Natural, fits, kinds_of, wording
from prm.config import DataConfig, OptimConfig
from prm.errors import CheckpointError, shown
from prm.io.disk import short
from prm.io.folders import recover
from prm.io.tables import parse_json

COPY_BACK = "copy it back from a backup, or train the run again"


class Size(TypedDict):
    """Size of the training data."""

    comparisons: Natural
    prompts: Natural
    people: Natural


class TakenIn(TypedDict):
    """One run of `prm adapt`: how many comparisons it trained on."""

    comparisons: Natural


class Parameters(TypedDict):
    """Number of trained parameters."""

    users: Natural
    shared: Natural


class Card(TypedDict):
    """Name, citation and licence of a public data set."""

    name: str
    citation: str
    licence: str


class Log(TypedDict, total=False):
    """The section `data` of `run.json`."""

    path: str
    fingerprint: str
    has_user_text: bool
    learnt_from: Size
    card: Card | None


class Given(TypedDict, total=False):
    """Settings of all kinds of runs (section `config` of `run.json`); earlier runs may lack keys or have others."""

    data: DataConfig
    optim: OptimConfig
    start_from: str


class RunRecord(TypedDict, total=False):
    """`run.json`; runs saved from Python have fewer keys."""

    config: Given
    data: Log
    adapted: list[TakenIn]
    feature_stores: list[Any]
    parameters: Parameters | None


class _Controls(TypedDict):
    length_sign: dict[str, float]


def result_file(run: str | Path, what: str, log: str) -> Path:
    """Path of a run's results on a log, such as `evaluation-test.json`."""
    return Path(run) / f"{what}-{short(log)}.json"


def read_json(path: Path, kind: Any, mend: str = COPY_BACK) -> Any:
    """The value of a JSON file, checked.

    Args:
        kind: its type: a TypedDict or a dataclass (fields with a default may be missing), lists and mappings of
            these, or any type of a settings field. Numbers must be finite.
        mend: what to do about a faulty file, for the message.

    Raises `CheckpointError` naming the file and, if there is one, the key.
    """
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} is missing: {mend}")
    try:
        value = parse_json(path.read_bytes().decode(), finite=False)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}: {mend}") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise CheckpointError(f"{path} is damaged: {error}: {mend}") from None
    refuse_unfit(path, kind, value, "", mend)
    return value


def refuse_unfit(path: Path, kind: Any, value: Any, key: str = "", mend: str = COPY_BACK) -> None:
    """Raise `CheckpointError` if the value at `key` of a file is not of this kind (see `read_json`)."""
    if fault := _fault(kind, value, key):
        raise CheckpointError(f"{path} is damaged: {fault}: {mend}")


def read_run(folder: Path, *needed: str) -> dict[str, Any]:
    """`run.json` of a run.

    Args:
        needed: dotted keys that must be there, such as `config.data`.

    Raises `CheckpointError` if it is missing or damaged.
    """
    path = Path(folder) / "run.json"
    recover(path.parent)
    run: dict[str, Any] = read_json(path, RunRecord)
    for key in needed:
        inner: Any = run
        for name in key.split("."):
            if name not in inner:
                raise CheckpointError(f"{path} is damaged: '{key}' is missing: {COPY_BACK}")
            inner = inner[name]
    return run


def read_length_signs(folder: Path) -> dict[str, float] | None:
    """Each user's taste for length in a run's training part (`prm.data.baselines.length_signs`); `None` if not saved.

    Raises `CheckpointError` if `controls.json` is damaged.
    """
    path = Path(folder) / "controls.json"
    if not os.path.lexists(path):
        return None
    signs: dict[str, float] = read_json(path, _Controls)["length_sign"]
    return signs


def _fault(kind: Any, value: Any, key: str) -> str:
    """The first fault of the value at a key; empty if there is none."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is NotRequired:
        return _fault(inner[0], value, key)
    if origin in (Union, types.UnionType) and value is not None:  # at most one member is a group
        kind = next((item for item in inner if _keys_of(item) is not None), kind)
    if (keys := _keys_of(kind)) is not None:
        if not isinstance(value, dict):
            return f"{_quoted(key)} must hold {', '.join(map(repr, keys))}, got {shown(value)}"
        if missing := _required(kind) - value.keys():
            return f"{_quoted(_joined(key, min(missing)))} is missing"
        return _first(_fault(keys[name], value[name], _joined(key, name)) for name in keys if name in value)
    if origin in (dict, list) and not isinstance(value, origin):
        return f"{_quoted(key)} must be {'a list' if origin is list else 'an object'}, got {shown(value)}"
    if origin is dict:
        return _first(_fault(inner[1], item, _joined(key, name)) for name, item in value.items())
    if origin is list:
        return _first(_fault(inner[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    return "" if fits(kind, value) else f"{_quoted(key)} must be {wording(kind)}, got {shown(value)}"


def _keys_of(kind: Any) -> dict[str, Any] | None:
    """Types of the values of a TypedDict or a dataclass, by key; `None` for any other type."""
    if is_typeddict(kind):
        return get_type_hints(kind, include_extras=True)
    return kinds_of(cast(Any, kind)) if is_dataclass(kind) else None


def _required(kind: Any) -> frozenset[str]:
    if is_typeddict(kind):
        return cast(frozenset[str], kind.__required_keys__)
    return frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)


def _first(faults: Iterable[str]) -> str:
    return next(filter(None, faults), "")


def _quoted(key: str) -> str:
    return f"'{key}'" if key else "it"


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
