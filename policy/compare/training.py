"""The runs of a comparison: which exist, which are to be trained, and their training one after the other."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, TypedDict

from policy.compare.config import CompareConfig, RunSpec, named_in
from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig
from prm.checks import NonNegative, differing
from prm.config import RunConfig, TrainConfig
from prm.errors import PrmError, hint, listed
from prm.io.disk import beside, remove
from prm.io.folders import NOTE, recover, work_folder
from prm.io.run_files import read_json, read_run
from prm.io.tables import write_json
from prm.io.yaml_settings import read_config

logger = logging.getLogger(__name__)

_TRAINED_BY = {
    "train": "prm.training.run.train",
    "sft": "policy.sft.train_sft",
    "dpo": "policy.dpo.train_dpo",
    "ppo": "policy.ppo.train.train_ppo",
    "online": "policy.online.train.train_online",
}

State = Literal["there", "unfinished", "missing", "outdated"]

KINDS: dict[str, type[RunConfig]] = {
    "train": TrainConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "ppo": PpoConfig,
    "online": OnlineConfig,
}


class _Metrics(TypedDict, total=False):
    seconds: float


@dataclass(frozen=True)
class Job:
    """A run of the comparison: its settings, the runs that it depends on, and its state.

    `outdated` is a run with other settings, or one that is older than a run that it depends on.
    """

    name: str
    command: str
    config: RunConfig
    needs: tuple[str, ...]
    state: State

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output_dir)


def plan_jobs(config: CompareConfig) -> list[Job]:
    """All runs in order, with settings resolved. Raises `PrmError` naming the run if its settings are invalid."""
    jobs: dict[str, Job] = {}
    for name, spec in config.runs.items():
        resolved, needs = run_config(config, name, spec), tuple(named_in(spec.settings))
        outdated = any(jobs[other].state != "there" for other in needs)
        jobs[name] = Job(name, spec.command, resolved, needs, _state(resolved, outdated))
    return list(jobs.values())


def run_config(config: CompareConfig, name: str, spec: RunSpec) -> RunConfig:
    """The resolved settings of one run."""
    changes = {key: _with_folders(config, value) for key, value in _flat(spec.settings)}
    shared = {f"data.{key}": value for key, value in _flat(asdict(config.data))} | {"seed": config.seed}
    shared |= {"output_dir": config.resolve(f"{{{name}}}"), "overwrite": config.overwrite}
    if "seed" in changes:
        shared["data.split_seed"] = config.split_seed  # what it learns from must not be asked about
    try:
        resolved = read_config(KINDS[spec.command], *spec.configs, settings={**shared, **changes})
        resolved.check()
    except PrmError as error:
        raise PrmError(f"config key 'runs.{name}': {error}") from None
    return resolved


def train_jobs(jobs: Sequence[Job], folder: Path, only: Sequence[str] = ()) -> None:
    """Train missing runs, or with `only` these and their dependencies; interrupted runs are resumed.

    Adds the seconds spent up in `folder`/seconds.json. Raises `PrmError` for an unknown name, and for a run with other
    settings that must not be overwritten.
    """
    by_name = {job.name: job for job in jobs}
    chosen = _with_needs(only or list(by_name), by_name)
    todo = [job for job in jobs if job.name in chosen and job.state != "there"]
    for job in todo:
        if job.state == "outdated" and not job.config.overwrite:
            raise PrmError(
                f"{job.folder} was trained with other settings, or before a run that it depends on; delete it, set "
                "another 'output_dir', or set 'overwrite: true' to train it again"
            )
    remove(beside(folder / "seconds.json", ".tmp"))  # left by a killed command
    for number, job in enumerate(todo, start=1):
        logger.info("run %d of %d to train: %s", number, len(todo), job.name)
        _with_seconds(folder, job)


def _with_seconds(folder: Path, job: Job) -> None:
    """Train, and store the seconds that it took, even if it is interrupted."""
    started = time.perf_counter()
    try:
        # importing trl takes seconds
        module, _, function = _TRAINED_BY[job.command].rpartition(".")
        getattr(import_module(module), function)(job.config)
    finally:
        spent = read_seconds(folder)
        before = spent.get(job.name, 0.0) if job.state == "unfinished" else 0.0
        write_json(folder / "seconds.json", spent | {job.name: before + time.perf_counter() - started})


def read_seconds(folder: Path) -> dict[str, float]:
    """Training seconds by run."""
    path = folder / "seconds.json"
    if not os.path.lexists(path):
        return {}
    return read_json(path, dict[str, NonNegative], "delete it: finished runs then have none")


def training_seconds(folder: Path, jobs: Sequence[Job]) -> dict[str, float]:
    """`read_seconds`, and for a finished run without an entry what its own metrics say: since it was last resumed.

    There is no entry where the run was trained by another command, or a kill came between its end and the entry.
    """
    seconds = {}
    for job in jobs:
        path = job.folder / "metrics.json"
        if path.is_file() and (of_run := read_json(path, _Metrics).get("seconds")) is not None:
            seconds[job.name] = of_run
    return seconds | read_seconds(folder)


def runs_needed(names: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """These runs and all that they depend on, in order of training."""
    chosen = _with_needs(names, {job.name: job for job in jobs})
    return [job.name for job in jobs if job.name in chosen]


def _with_needs(names: Sequence[str], jobs: dict[str, Job]) -> set[str]:
    selected: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in jobs:
            raise PrmError(f"there is no run {name!r}, but {listed(jobs)}{hint(name, jobs, 'runs')}")
        if name not in selected:
            selected.add(name)
            todo += jobs[name].needs
    return selected


def _state(config: RunConfig, outdated: bool) -> State:
    target = Path(config.output_dir)
    recover(target)
    if not os.path.lexists(target / "run.json"):
        return "unfinished" if work_folder(target).exists() else "missing"
    was = read_run(target).get("config", {})  # of an earlier version: without later settings
    if outdated or {*differing(was, config.to_dict(), type(config)().to_dict())} - {"overwrite"}:
        return "outdated"
    return "unfinished" if (target / NOTE).is_file() else "there"


def _flat(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of nested settings."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with_folders(config: CompareConfig, value: object) -> object:
    if isinstance(value, list):
        return [_with_folders(config, item) for item in value]
    return config.resolve(value) if isinstance(value, str) else value
