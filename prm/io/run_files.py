"""Reads the JSON files of runs and checks their types; errors name the file and say what to do.

Keys that are not used are not checked. Does not import torch.
"""

import os
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import (
    Annotated,
    Literal,
    NotRequired,
    TypedDict,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from prm.checks import Natural, Seed, fits, kinds_of, wording
from prm.config import DataConfig, OptimConfig
from prm.errors import CheckpointError, shown
from prm.io.disk import short
from prm.io.folders import recover
from prm.io.rows import Json
from prm.io.tables import parse_json

COPY_BACK = "copy it back from a backup, or train the run again"

T = TypeVar("T")

Metrics = Mapping[str, object]  # what `metrics.json` holds


@dataclass(frozen=True)
class FieldsOf:
    """Annotates a JSON object whose values are checked as the fields of a dataclass or TypedDict, where it has them."""

    kind: type


class Size(TypedDict):
    """Size of the training data."""

    comparisons: Natural
    prompts: Natural
    people: Natural


class TakenIn(TypedDict):
    """One run of `prm adapt`: the comparisons that it added; `fingerprint` is removed with one of their users."""

    comparisons: Natural
    people: NotRequired[Natural]
    anew: NotRequired[bool]
    fingerprint: NotRequired[str]


class Overlap(TypedDict):
    """Comparisons of a log that a model was trained on, whatever the label and the order of the responses.

    `own`: by the same user; `others`: of the same prompt and responses, by other users only.
    """

    own: Natural
    others: Natural


class Parameters(TypedDict):
    """Number of trained parameters."""

    users: Natural
    shared: Natural


class CardRecord(TypedDict):
    """A public data set."""

    name: str
    citation: str
    licence: str
    about: NotRequired[str]
    counts: NotRequired[dict[str, Natural]]


class LogRecord(TypedDict, total=False):
    """The log that a run was trained on (section `data` of `run.json`); that of `policy sft` may hold responses.

    `rows`, `pairs` and `left_out` are counts by outcome, of the log's rows, of the pairs that they could make, and of
    comparisons that are in no part. `read_at` is when reading it began: what is said later may not be in it.
    """

    read_at: str
    read_as: str
    rows: dict[str, Natural]
    pairs: dict[str, Natural]
    rule: str
    notes: list[str]
    card: CardRecord | None
    left_out: dict[str, Natural]
    path: str
    fingerprint: str
    train_comparisons: Natural
    validation_comparisons: Natural
    test_comparisons: Natural
    train_answers: Natural
    validation_answers: Natural
    skipped: Natural
    learnt_from: Size
    has_user_text: bool


class Environment(TypedDict, total=False):
    """Package versions, git commit and time of writing."""

    versions: dict[str, str]
    commit: str | None
    written: str


class _Settings(TypedDict, total=False):
    """Settings of all kinds of runs (section `config` of `run.json`); earlier runs may lack keys or have others."""

    data: DataConfig
    optim: OptimConfig
    start_from: str


class RunRecord(TypedDict, total=False):
    """How a run was trained: `run.json`. Runs saved from Python and by earlier versions have fewer keys.

    `trainer` is the class of a trainer that was used from Python, `day` the ISO date on which training began,
    `template` the digest of the chat template.
    """

    kind: str
    trainer: str
    config: Annotated[dict[str, object], FieldsOf(_Settings)]
    seed: Seed
    day: str
    data: LogRecord
    parameters: Parameters | None
    feature_stores: list[object]
    adapted: list[TakenIn]
    merged_from: str
    prompts_too_long: Natural
    template: str
    environment: Environment


class Controls(TypedDict):
    """`controls.json`: each user's taste for length in the training part (`prm.data.baselines.length_votes`).

    Runs of earlier versions have no counts.
    """

    length_sign: dict[str, float]
    length_count: NotRequired[dict[str, float]]


# what the JSON files of a run hold, by name
RunFiles = TypedDict(
    "RunFiles", {"run.json": RunRecord, "metrics.json": dict[str, object], "controls.json": Controls}, total=False
)


def result_file(run: str | Path, what: str, log: str) -> Path:
    """Path of a run's results on a log, such as `evaluation-test.json`."""
    return Path(run) / f"{what}-{short(log)}.json"


def read_json(path: Path, kind: type[T], mend: str = COPY_BACK) -> T:
    """The value of a JSON file, checked.

    Args:
        kind: its type: a TypedDict, lists and mappings of these, or any type of a settings field. Numbers must be
            finite.
        mend: what to do about a faulty file, for the message.

    Raises `CheckpointError` naming the file and, if there is one, the key.
    """
    return fitting(path, kind, _json_in(path, mend), mend=mend)


def _json_in(path: Path, mend: str) -> Json:
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} is missing: {mend}")
    try:
        return parse_json(path.read_bytes().decode(), finite=False)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}: {mend}") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise CheckpointError(f"{path} is damaged: {error}: {mend}") from None


def fitting(path: Path, kind: type[T], value: object, key: str = "", mend: str = COPY_BACK) -> T:
    """The value at `key` of a file, of a type that `read_json` takes. Raises `CheckpointError` if it is not."""
    refuse_unfit(path, kind, value, key, mend)
    return cast(T, value)


def refuse_unfit(path: Path, kind: object, value: object, key: str = "", mend: str = COPY_BACK) -> None:
    """Raise `CheckpointError` if the value at `key` of a file is not of this kind (see `read_json`).

    Args:
        kind: may also be a dataclass, whose fields with a default may be missing.
    """
    if fault := _fault(kind, value, key):
        raise CheckpointError(f"{path} is damaged: {fault}: {mend}")


def read_run(folder: Path, *needed: str) -> RunRecord:
    """`run.json` of a run.

    Args:
        needed: dotted keys that must be there, such as `config.data`.

    Raises `CheckpointError` if it is missing or damaged.
    """
    path = Path(folder) / "run.json"
    recover(path.parent)
    run = read_json(path, RunRecord)
    for key in needed:
        inner: object = run
        for name in key.split("."):
            if not isinstance(inner, dict) or name not in inner:
                raise CheckpointError(f"{path} is damaged: '{key}' is missing: {COPY_BACK}")
            inner = inner[name]
    return run


def read_group(folder: Path, group: Literal["data", "optim"]) -> dict[str, object]:
    """A group of the settings that a run was trained with; raises as `read_run` does, and if it is missing."""
    return group_in(read_run(folder, f"config.{group}"), group)


def group_in(run: RunRecord, group: Literal["data", "optim"]) -> dict[str, object]:
    """A group of the settings in the record of a run that has it."""
    settings = run["config"][group]
    assert isinstance(settings, dict)  # `read_run` has checked it
    return settings


def read_controls(folder: Path) -> Controls | None:
    """Each user's taste for length in a run's training part; `None` if not saved.

    Raises `CheckpointError` if `controls.json` is damaged.
    """
    path = Path(folder) / "controls.json"
    return read_json(path, Controls) if os.path.lexists(path) else None


def _fault(kind: object, value: object, key: str) -> str:
    """The first fault of the value at a key; empty if there is none."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is NotRequired:
        return _fault(inner[0], value, key)
    if origin is Annotated and isinstance(inner[1], FieldsOf):
        return _fault(inner[1].kind, value, key)
    if origin in (Union, types.UnionType) and value is not None:  # at most one member is a group
        kind = next((item for item in inner if _keys_of(item) is not None), kind)
    if (keys := _keys_of(kind)) is not None:
        if not isinstance(value, dict):
            return f"{_quoted(key)} must hold {', '.join(map(repr, keys))}, got {shown(value)}"
        if missing := _required(kind) - value.keys():
            return f"{_quoted(_joined(key, min(missing)))} is missing"
        return _first(_fault(keys[name], value[name], _joined(key, name)) for name in keys if name in value)
    if origin is dict:
        if not isinstance(value, dict):
            return f"{_quoted(key)} must be an object, got {shown(value)}"
        return _first(_fault(inner[1], item, _joined(key, name)) for name, item in value.items())
    if origin is list:
        if not isinstance(value, list):
            return f"{_quoted(key)} must be a list, got {shown(value)}"
        return _first(_fault(inner[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    return "" if fits(kind, value) else f"{_quoted(key)} must be {wording(kind)}, got {shown(value)}"


def _keys_of(kind: object) -> dict[str, object] | None:
    """Types of the values of a TypedDict or a dataclass, by key; `None` for any other type."""
    if is_typeddict(kind):
        return get_type_hints(kind, include_extras=True)
    return kinds_of(kind) if isinstance(kind, type) and is_dataclass(kind) else None


def _required(kind: object) -> frozenset[str]:
    """Keys that a TypedDict or a dataclass must have."""
    if isinstance(kind, type) and is_dataclass(kind):
        return frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)
    required: frozenset[str] = getattr(kind, "__required_keys__", frozenset())
    return required


def _first(faults: Iterable[str]) -> str:
    return next(filter(None, faults), "")


def _quoted(key: str) -> str:
    return f"'{key}'" if key else "it"


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
