"""The folder that a run trains in before its own appears: of one command at a time, and taken up where it was left."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from prm.checkpoint import checkpoint as checkpoints
from prm.config import RunConfig
from prm.data.chat_template import today
from prm.errors import PrmError
from prm.io.disk import make_folder, remove
from prm.io.folders import publish, work_folder, working_in
from prm.io.tables import write_json
from prm.models.backbones import processes

NOTE = "started.json"  # settings and data of a run that is not finished
STALE = ("evaluation*", "audit*", "cold_start*", "result.json")  # of other people, once somebody comes or goes
STATES = "trainer"  # folder of what a run is taken up from


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """As `prm.io.folders.working_in`, by the main process for all. Raises `PrmError` in each of them."""
    state = processes()
    with ExitStack() as stack:
        said = [""]
        if state.is_main_process:
            try:
                make_folder(folder.parent)
                stack.enter_context(working_in(folder))
            except PrmError as error:
                said = [str(error)]
        if state.num_processes > 1:
            broadcast_object_list(said)
        if said[0]:
            raise PrmError(said[0])
        yield


def settings_and_data(config: RunConfig, data_fingerprint: str) -> dict[str, Any]:
    """What a run is known by while it is not finished."""
    started = {"config": config.to_dict() | {"overwrite": None}, "data": data_fingerprint}
    started |= {"processes": processes().num_processes}  # another number would take the pairs in another order
    if config.start_from:
        started["start_from"] = checkpoints.digest(Path(config.start_from))
    return started


def open_work_folder(target: Path, config: RunConfig, data_fingerprint: str) -> Path:
    """The folder to train in: a new one, or that of a killed run with the same settings and data."""
    work = work_folder(target)
    started = settings_and_data(config, data_fingerprint)
    if processes().is_main_process:
        note, day = _read_note(work)
        if note is not None and note != started and not config.overwrite:
            raise PrmError(
                f"{work} holds an unfinished run with other settings or data; finish it with those, "
                "delete the folder, or give overwrite: true (--overwrite true)"
            )
        if note != started:
            remove(work)
        make_folder(work)
        write_json(work / NOTE, started | {"day": day if note == started and day is not None else today()})
    processes().wait_for_everyone()
    return work


def is_finished(target: Path, config: RunConfig, data_fingerprint: str) -> bool:
    """Whether this very run is there, killed when nothing was left to do but to clear away."""
    return (target / NOTE).is_file() and _read_note(target)[0] == settings_and_data(config, data_fingerprint)


def finish(target: Path) -> None:
    """Give the run its folder, unless it has it, and remove what it could have been taken up from."""
    if work_folder(target).is_dir():
        publish(work_folder(target), target)
    remove(target / STATES)
    remove(target / NOTE)  # only now: without it a killed run's work would be thrown away


def first_day(work: Path) -> str:
    """The day on which the run began: a chat template may write the date, which is then that one to the end."""
    day: str = _read_note(work)[1]
    return day


def _read_note(folder: Path) -> tuple[Any, Any]:
    """(what `settings_and_data` was when the run began, that day); `None` where nobody can say."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        day = note.pop("day", None)
    except (OSError, ValueError, AttributeError):
        return None, None
    return note, day
