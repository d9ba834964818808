"""The runs of a comparison: which are there, which are to be trained, and their training one after the other."""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from policy.compare.config import CompareConfig, RunSpec, named_in
from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig
from prm.checks import NonNegative
from prm.config import RunConfig, TrainConfig
from prm.errors import PrmError, hint, listed
from prm.io.disk import beside, remove
from prm.io.folders import recover, work_folder
from prm.io.run_files import read_json, read_run
from prm.io.tables import write_json
from prm.io.yaml_settings import read_config
from prm.training.work_folder import NOTE

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


@dataclass(frozen=True)
class Job:
    """A run to be: its settings, what it needs first, and what is there of it.

    `outdated` is a run that is there with other settings, or from before a run that it is made of.
    """

    name: str
    command: str
    config: RunConfig
    needs: tuple[str, ...]
    state: State

    @property
    def folder(self) -> Path:
        """Where the run lies, or will lie."""
        return Path(self.config.output_dir)


def plan_jobs(config: CompareConfig) -> list[Job]:
    """Every run with its settings resolved, in order. Raises `PrmError` naming the run whose settings make no sense."""
    found: dict[str, Job] = {}
    for name, spec in config.runs.items():
        resolved, needs = run_config(config, name, spec), tuple(named_in(spec.settings))
        late = any(found[other].state != "there" for other in needs)
        found[name] = Job(name, spec.command, resolved, needs, _state(resolved, late))
    return list(found.values())


def run_config(config: CompareConfig, name: str, spec: RunSpec) -> RunConfig:
    """The settings of one run."""
    own = {key: _placed(config, value) for key, value in _flat(spec.settings)}
    shared = {f"data.{key}": value for key, value in _flat(asdict(config.data))} | {"seed": config.seed}
    shared |= {"output_dir": config.place(f"{{{name}}}"), "overwrite": config.overwrite}
    try:
        found = read_config(KINDS[spec.command], *spec.configs, settings={**shared, **own})
        found.check()
    except PrmError as error:
        raise PrmError(f"config key 'runs.{name}': {error}") from None
    return found


def train_jobs(jobs: Sequence[Job], folder: Path, only: Sequence[str] = ()) -> None:
    """Train what is not there yet, with `only` those and what they need; what was interrupted is taken up.

    Seconds spent are added up in `folder`/seconds.json. Raises `PrmError` for a name that no run has, and for a run
    that is there with other settings and must not be overwritten.
    """
    by_name = {job.name: job for job in jobs}
    chosen = _with_needs(only or list(by_name), by_name)
    todo = [job for job in jobs if job.name in chosen and job.state != "there"]
    for job in todo:
        if job.state == "outdated" and not job.config.overwrite:
            raise PrmError(
                f"{job.folder} was trained with other settings, or before a run that it is made of; delete it, give "
                "another output_dir, or overwrite: true (--overwrite true) to train it anew"
            )
    remove(beside(folder / "seconds.json", ".tmp"))  # of a command that was killed
    for number, job in enumerate(todo, start=1):
        logger.info("run %d of %d to train: %s", number, len(todo), job.name)
        _with_seconds(folder, job)


def _with_seconds(folder: Path, job: Job) -> None:
    """Train, and count the time it took, also where it is stopped."""
    started = time.perf_counter()
    try:
        # they bring in trl, which takes seconds
        module, _, function = _TRAINED_BY[job.command].rpartition(".")
        getattr(import_module(module), function)(job.config)
    finally:
        spent = read_seconds(folder)
        before = spent.get(job.name, 0.0) if job.state == "unfinished" else 0.0
        write_json(folder / "seconds.json", spent | {job.name: before + time.perf_counter() - started})


def read_seconds(folder: Path) -> dict[str, float]:
    """Seconds that runs took to train, by name."""
    path = folder / "seconds.json"
    if not os.path.lexists(path):
        return {}
    found: dict[str, float] = read_json(path, dict[str, NonNegative], "delete it: runs that are there then have none")
    return found


def needed(names: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """The runs of these names and all that they are made of, in order of training."""
    chosen = _with_needs(names, {job.name: job for job in jobs})
    return [job.name for job in jobs if job.name in chosen]


def _with_needs(names: Sequence[str], jobs: dict[str, Job]) -> set[str]:
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in jobs:
            raise PrmError(f"there is no run {name!r}, but {listed(jobs)}{hint(name, jobs, 'runs')}")
        if name not in found:
            found.add(name)
            todo += jobs[name].needs
    return found


def _state(config: RunConfig, late: bool) -> State:
    target = Path(config.output_dir)
    recover(target)
    if not os.path.lexists(target / "run.json"):
        return "unfinished" if work_folder(target).exists() else "missing"
    was = read_run(target).get("config", {})
    now = json.loads(json.dumps(config.to_dict()))
    if late or was | {"overwrite": None} != now | {"overwrite": None}:
        return "outdated"
    return "unfinished" if (target / NOTE).is_file() else "there"


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted key; an empty group holds none."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _placed(config: CompareConfig, value: Any) -> Any:
    if isinstance(value, list):
        return [_placed(config, item) for item in value]
    return config.place(value) if isinstance(value, str) else value
