"""The work folder in which a run trains before its run folder appears: locked, and resumable after a kill."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NotRequired, TypedDict

from accelerate.utils import broadcast_object_list

from prm.checkpoint import checkpoint as checkpoints
from prm.checks import differing
from prm.config import RunConfig
from prm.data.chat_template import today
from prm.errors import PrmError
from prm.io.disk import make_folder, remove
from prm.io.folders import NOTE, discard_work, publish, work_folder, working_in
from prm.io.tables import write_json
from prm.models.backbones import processes
from prm.training.trainers.sharding import is_sharded

STALE = (
    "evaluation*",
    "audit*",
    "cold_start*",
    "result.json",
)  # results that are out of date once users are added or removed
STATES = "trainer"  # folder of the checkpoints from which a run is resumed


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """`prm.io.folders.working_in`, entered by the main process for all. Raises `PrmError` in every process."""
    state = processes()
    with ExitStack() as stack:
        fault = [""]
        if state.is_main_process:
            try:
                make_folder(folder.parent)
                stack.enter_context(working_in(folder))
            except PrmError as error:
                fault = [str(error)]
        if state.num_processes > 1:
            broadcast_object_list(fault)
        if fault[0]:
            raise PrmError(fault[0])
        yield


class Started(TypedDict):
    """What identifies an unfinished run: settings, data, processes and earlier run."""

    config: dict[str, object]
    data: str
    processes: int
    start_from: NotRequired[str]
    sharded: NotRequired[bool]


def settings_and_data(config: RunConfig, data_fingerprint: str) -> Started:
    """What identifies an unfinished run: settings, data, processes and earlier run."""
    started: Started = {
        "config": config.to_dict() | {"overwrite": None},
        "data": data_fingerprint,
        "processes": processes().num_processes,  # the order of pairs depends on it
    }
    if is_sharded():  # the optimiser's state is in other files
        started["sharded"] = True
    if config.start_from:
        started["start_from"] = checkpoints.digest(Path(config.start_from))
    return started


def open_work_folder(target: Path, config: RunConfig, data_fingerprint: str) -> Path:
    """The folder to train in: a new one, or that of a killed run with the same settings and data.

    Raises `PrmError` if it holds an unfinished run with other settings or data.
    """
    work = work_folder(target)
    started = settings_and_data(config, data_fingerprint)
    if processes().is_main_process:
        note, day = _read_note(work)
        if note is not None and note != started and not config.overwrite:
            keys = differing(note["config"], started["config"]) or ["the data, the number of processes, or FSDP"]
            raise PrmError(
                f"{work} holds an unfinished run with other settings or data ({', '.join(keys)}); finish it with "
                "those, delete the folder, or set 'overwrite: true'"
            )
        if note != started:
            discard_work(work)
        make_folder(work)
        write_json(work / NOTE, {**started, "day": day if note == started and day is not None else today()})
    processes().wait_for_everyone()
    return work


def is_finished(target: Path, config: RunConfig, data_fingerprint: str) -> bool:
    """Whether this run is complete and was killed while it cleaned up."""
    return (target / NOTE).is_file() and _read_note(target)[0] == settings_and_data(config, data_fingerprint)


def finish(target: Path) -> None:
    """Publish the run folder, unless it is there, and remove what a resume would need."""
    if work_folder(target).is_dir():
        publish(work_folder(target), target)
    remove(target / STATES)
    remove(target / NOTE)  # last: without it the work of a killed run would be discarded


def first_day(work: Path) -> str:
    """The day on which the run began, which a chat template uses as the date even after a resume."""
    day = _read_note(work)[1]
    assert day is not None  # `open_work_folder` writes it
    return day


def _read_note(folder: Path) -> tuple[Started | None, str | None]:
    """(`settings_and_data` when the run began, the day it began); each `None` if unreadable or missing."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        day = note.pop("day", None)
    except (OSError, ValueError, AttributeError):
        return None, None
    return note, day
