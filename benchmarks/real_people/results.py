"""The figures of the sets as the JSON file holds them: the page is made of nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from prm.io.tables import write_json
from prm.metrics import Estimate


class Ends(TypedDict):
    """A mean with its 95% interval by bootstrap over people; `None` where one person is too few for an interval."""

    value: float
    low: float | None
    high: float | None


class Gain(TypedDict):
    """A model less the best baseline: accuracy and lower log loss, per comparison and per person."""

    points: Ends
    points_macro: Ends
    nats: Ends
    nats_macro: Ends


class Error(TypedDict):
    """Calibration error, and what chance alone gives."""

    error: float
    by_chance: float


class Model(TypedDict):
    """One model on the held-out comparisons."""

    name: str
    personal: bool
    accuracy: Ends
    nll: Ends
    calibration: Error
    gains: Gain | None
    seconds: float


class Group(TypedDict):
    """People with so many training comparisons, `most` `None`: and more; gains by model."""

    least: int
    most: int | None
    people: int
    comparisons: int
    gains: dict[str, Gain]


class Step(TypedDict):
    """New people after so many comparisons of each."""

    after: int
    people: int
    comparisons: int
    nll: dict[str, Ends]
    gains: dict[str, Gain]


class Size(TypedDict):
    """Comparisons, prompts and people of a log."""

    comparisons: int
    prompts: int
    people: int


class Result(TypedDict):
    """What `prm compare` found."""

    size: Size
    held_out: int
    decided: int
    people: int
    baselines: dict[str, int]
    winners: dict[str, int]
    rows: list[Model]
    groups: list[Group]
    new_users: list[Step]


class Versions(TypedDict):
    """Where and when a set was measured."""

    commit: str | None
    written: str


class Measured(TypedDict):
    """A set that was measured: how it was thinned, and the figures."""

    title: str
    about: str
    holdout_by: str
    settings: dict[str, object]
    least: int
    people: int
    each: int
    log: Size
    seed: int
    folds: int
    backbone: str
    environment: Versions
    result: Result


def estimate_of(ends: Ends) -> Estimate:
    """The estimate; an interval without ends is infinite."""
    low, high = ends["low"], ends["high"]
    return Estimate(ends["value"], float("-inf") if low is None else low, float("inf") if high is None else high)


def read_results(path: Path) -> dict[str, Measured]:
    """The sets that were measured, by name; none if there is no file."""
    found: dict[str, Measured] = json.loads(path.read_text(encoding="utf-8"))["sets"] if path.is_file() else {}
    return found


def write_results(path: Path, sets: Mapping[str, object]) -> None:
    """Write the file, atomically."""
    write_json(path, {"made by": "python -m benchmarks.real_people", "sets": sets})
