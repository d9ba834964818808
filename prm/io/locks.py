"""Locks, so that only one command at a time writes to a folder."""

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
_held: dict[Path, tuple[int, int]] = {}  # (thread, times entered) of each lock that this process holds
_guard = threading.Lock()


class BusyError(PrmError):
    """Another command is writing to the folder; the message names both."""


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[Path]:
    """Keep other commands from writing to the folder within the block; yields the folder, links resolved.

    The lock is a system lock on a file beside the folder, so a killed process does not hold it. The same thread may
    enter again. If the lock file cannot be created, nothing is locked.

    Args:
        wait: wait until another command is done.

    Raises `BusyError` if another command holds the lock.
    """
    folder = real(Path(os.path.expanduser(folder)))
    descriptor = _wait(folder) if wait else _enter(folder)
    try:
        yield folder
    finally:
        with _guard:
            thread, times = _held.pop(folder)
            if times > 1:
                _held[folder] = (thread, times - 1)
            elif descriptor is not None:
                _release(folder, descriptor)


def held_here(folder: Path) -> bool:
    """Whether this process works in the folder."""
    with _guard:
        return folder.resolve() in _held


def _wait(folder: Path) -> int | None:
    """`_enter`, repeated until the lock is free."""
    logged = False
    while True:
        try:
            return _enter(folder)
        except BusyError as error:
            if not logged:
                logger.info("waiting: %s", error)
            logged = True
            time.sleep(_PAUSE)


def _enter(folder: Path) -> int | None:
    """A descriptor that holds the lock; `None` if this thread holds it already or no lock is possible."""
    this_thread = threading.get_ident()
    with _guard:
        thread, times = _held.get(folder, (this_thread, 0))
        if thread != this_thread:
            raise BusyError(f"{folder}: another thread of this process is writing to it; try again when it is done")
        descriptor = _take(folder) if times == 0 else None
        _held[folder] = (this_thread, times + 1)
        return descriptor


def _take(folder: Path) -> int | None:
    """A descriptor that holds the lock; `None` if no lock is possible. Raises `BusyError`."""
    path = _lock_file(folder)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # missing or read-only: a later write fails with its own message
            return None
        try:
            acquired = lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): make sure that only one command writes to it", folder, error)
            os.close(descriptor)
            return None
        if not acquired:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise BusyError(f"{folder}: another command is writing to it{holder}; try again when it is done")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # its last holder has just removed this file: another command may hold the new one
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(_this_process()).encode())
    return descriptor


def _release(folder: Path, descriptor: int) -> None:
    with suppress(OSError):
        _lock_file(folder).unlink()
    with suppress(OSError):
        unlock_descriptor(descriptor)
    os.close(descriptor)


def _lock_file(folder: Path) -> Path:
    return beside(folder, ".lock")


def _this_process() -> dict[str, str | int]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}


def _holder(descriptor: int) -> str:
    """The process that holds the lock, in words; empty if it has not written that yet."""
    try:
        holder = json.loads(os.read(descriptor, 1 << 16))
        command = shorten(str(holder["command"]))
        return (
            f" (process {holder['process']} on {holder['host']}, since {holder['since']}: {' '.join(command.split())})"
        )
    except (OSError, ValueError, TypeError, KeyError):
        return ""
