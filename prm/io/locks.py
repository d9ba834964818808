"""One command at a time writes to a folder."""

import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from prm.errors import PrmError, shorten
from prm.io.disk import beside, real

logger = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds between two tries
_held: dict[Path, tuple[int, int]] = {}  # (thread, how many times) of the locks of this process
_guard = threading.Lock()


class BusyError(PrmError):
    """Another command is writing to the folder; the message names both."""


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[Path]:
    """No other command writes to the folder within the block; gives the folder that a link may lead to.

    The lock is a file beside the folder, and the system's: that of a process that was killed is free again. The same
    thread may take it again. Where nobody may write beside the folder, nothing is locked.

    Args:
        wait: for another command to be done.

    Raises `BusyError` where another command is at work.
    """
    folder = real(Path(os.path.expanduser(folder)))
    place = _wait(folder) if wait else _enter(folder)
    try:
        yield folder
    finally:
        with _guard:
            thread, times = _held.pop(folder)
            if times > 1:
                _held[folder] = (thread, times - 1)
            elif place is not None:
                _give_back(folder, place)


def held_here(folder: Path) -> bool:
    """Whether this process works in the folder."""
    with _guard:
        return folder.resolve() in _held


def _wait(folder: Path) -> int | None:
    """As `_enter`, once nobody else is at work."""
    said = False
    while True:
        try:
            return _enter(folder)
        except BusyError as error:
            if not said:
                logger.info("waiting: %s", error)
            said = True
            time.sleep(_PAUSE)


def _enter(folder: Path) -> int | None:
    """A descriptor that holds the lock, `None` where this thread has it already or there can be none."""
    me = threading.get_ident()
    with _guard:
        thread, times = _held.get(folder, (me, 0))
        if thread != me:
            raise BusyError(f"{folder}: another thread of this process is writing to it; try again when it is done")
        place = _take(folder) if times == 0 else None
        _held[folder] = (me, times + 1)
        return place


def _take(folder: Path) -> int | None:
    """A descriptor that holds the lock; `None` where there can be none. Raises `BusyError`."""
    path = _lock_file(folder)
    while True:
        try:
            place = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # there is no such place, or it may only be read: whoever writes will be told
            return None
        try:
            taken = lock_descriptor(place, blocking=False)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see to it that one command alone writes to it", folder, error)
            os.close(place)
            return None
        if not taken:
            holder = _holder(place)
            os.close(place)
            raise BusyError(f"{folder}: another command is writing to it{holder}; try again when it is done")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(place), path.stat()):
                break
        os.close(place)  # of a file that its last holder has just removed: another may hold the new one
    os.truncate(place, 0)
    os.write(place, json.dumps(_myself()).encode())
    return place


def _give_back(folder: Path, place: int) -> None:
    with suppress(OSError):
        _lock_file(folder).unlink()
    with suppress(OSError):
        unlock_descriptor(place)
    os.close(place)


def _lock_file(folder: Path) -> Path:
    return beside(folder, ".lock")


def _myself() -> dict[str, str | int]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}


def _holder(place: int) -> str:
    """Who has the lock, in words; nothing where they have not said so yet."""
    try:
        who = json.loads(os.read(place, 1 << 16))
        command = shorten(str(who["command"]))
        return f" (process {who['process']} on {who['host']}, since {who['since']}: {' '.join(command.split())})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""
