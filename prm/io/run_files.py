"""JSON files of runs, read: whole and of the expected kinds, or one line that names the file and says what to do.

What is not used is not looked at: other keys may be there, and hold what they like. No torch here.
"""

import os
import types
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from prm.checks import Natural, fits, kinds_of, wording
from prm.config import DataConfig, OptimConfig
from prm.errors import CheckpointError, shown
from prm.io.disk import short
from prm.io.folders import recover
from prm.io.tables import parse_json

COPY_BACK = "copy it back from where it is whole, or train the run again"


class Size(TypedDict):
    """How much was learnt from."""

    comparisons: Natural
    prompts: Natural
    people: Natural


class TakenIn(TypedDict):
    """What `prm adapt` took in."""

    comparisons: Natural


class Parameters(TypedDict):
    """How many numbers were trained."""

    users: Natural
    shared: Natural


class Card(TypedDict):
    """Where a public data set comes from."""

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
    """Settings that runs of all kinds have, in the section `config` of `run.json`; of groups, the keys that are known
    today: earlier runs have fewer, or others."""

    data: DataConfig
    optim: OptimConfig
    start_from: str


class RunRecord(TypedDict, total=False):
    """`run.json`; a run that was saved from Python has less."""

    config: Given
    data: Log
    adapted: list[TakenIn]
    feature_stores: list[Any]
    parameters: Parameters | None


class _Controls(TypedDict):
    length_sign: dict[str, float]


def result_file(run: str | Path, what: str, log: str) -> Path:
    """Where a run keeps what was measured of it on a log, as in `evaluation-test.json`."""
    return Path(run) / f"{what}-{short(log)}.json"


def read_json(path: Path, kind: Any, mend: str = COPY_BACK) -> Any:
    """The value of a JSON file.

    Args:
        kind: what it must be: a TypedDict, whose keys must be there, a dataclass of settings, whose keys may be, lists
            and mappings of these, and what fields of settings may be. Numbers are finite.
        mend: what to do where it is not.

    Raises `CheckpointError` naming the file, and the key where there is one.
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
    """Raise `CheckpointError` where a part of a file, which stands at `key`, is not of the kind, as in `read_json`."""
    if fault := _fault(kind, value, key):
        raise CheckpointError(f"{path} is damaged: {fault}: {mend}")


def read_run(folder: Path, *needed: str) -> dict[str, Any]:
    """`run.json` of a run.

    Args:
        needed: keys that must be there, groups and names as in `config.data`.

    Raises `CheckpointError` where it is missing or damaged.
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
    """Who likes them longer (`prm.data.baselines.length_signs`), by a run's training part; `None` where unknown.

    Raises `CheckpointError` where `controls.json` is damaged.
    """
    path = Path(folder) / "controls.json"
    if not os.path.lexists(path):
        return None
    signs: dict[str, float] = read_json(path, _Controls)["length_sign"]
    return signs


def _fault(kind: Any, value: Any, key: str) -> str:
    """What is wrong with a value that stands at a key, if anything; of several faults the first."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is NotRequired:
        return _fault(inner[0], value, key)
    if origin in (Union, types.UnionType) and value is not None:  # of which at most one is a group
        kind = next((each for each in inner if _keys_of(each) is not None), kind)
    if (keys := _keys_of(kind)) is not None:
        if not isinstance(value, dict):
            return f"{_named(key)} must hold {', '.join(map(repr, keys))}, got {shown(value)}"
        required: frozenset[str] = getattr(kind, "__required_keys__", frozenset())
        if missing := required - value.keys():
            return f"{_named(_joined(key, min(missing)))} is missing"
        return _first(_fault(keys[name], value[name], _joined(key, name)) for name in keys if name in value)
    if origin in (dict, list) and not isinstance(value, origin):
        return f"{_named(key)} must be {'a list' if origin is list else 'an object'}, got {shown(value)}"
    if origin is dict:
        return _first(_fault(inner[1], each, _joined(key, name)) for name, each in value.items())
    if origin is list:
        return _first(_fault(inner[0], each, f"{key}[{i}]") for i, each in enumerate(value))
    return "" if fits(kind, value) else f"{_named(key)} must be {wording(kind)}, got {shown(value)}"


def _keys_of(kind: Any) -> dict[str, Any] | None:
    """Kinds of the values of a TypedDict or a dataclass by key; `None` where it is neither."""
    if is_typeddict(kind):
        return get_type_hints(kind, include_extras=True)
    return kinds_of(cast(Any, kind)) if is_dataclass(kind) else None


def _first(faults: Iterable[str]) -> str:
    return next(filter(None, faults), "")


def _named(key: str) -> str:
    return f"'{key}'" if key else "it"


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
