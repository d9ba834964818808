"""Writes down what was shown: many rows in one transaction, so that ranking does not wait for the disk."""

import logging
import queue
import re
import threading
import time
from typing import TypedDict, cast

from rerank.service.errors import reason_of
from rerank.service.store import Store

logger = logging.getLogger(__name__)

_MOST_WAITING, _MOST_CHARACTERS = 10_000, 2**27
_AT_ONCE = 500
_LOOKS, _PAUSE = 4, 0.1  # for what another replica has shown and not written yet; seconds between looks
_OURS = re.compile(r"[a-z]+-[0-9a-f]{30}")  # ids that services make


class Shown(TypedDict):
    """A row of the table `shown`."""

    id: str
    namespace: str
    user_id: str | None
    prompt: str
    responses: str
    held_out: bool
    personal: int
    generic: int
    p_personal: float
    comparisons: int
    time: float


class ShownLog:
    """A queue of rows of the table `shown`, written in the background.

    If the database fails, what waits is lost, and a warning says how much: ranking goes on.
    """

    def __init__(self, store: Store):
        self._store = store
        self._queue: queue.Queue[Shown | threading.Event | None] = queue.Queue(_MOST_WAITING)
        self._unwritten: dict[str, Shown] = {}
        self._lock, self.lost, self._characters = threading.Lock(), 0, 0
        self._thread = threading.Thread(target=self._work, name="writes what was shown", daemon=True)
        self._thread.start()

    def add(self, row: Shown) -> None:
        """Write this row soon; it can be found at once."""
        with self._lock:
            self._unwritten[row["id"]] = row
            self._characters += _size(row)
            is_full = self._characters > _MOST_CHARACTERS
        try:
            if is_full:
                raise queue.Full
            self._queue.put_nowait(row)
        except queue.Full:
            self._drop([row], "the queue is full")

    def find(self, namespace: str, shown_id: str) -> Shown | None:
        """The row of this id, if it is of the namespace. Waits 0.3 s for what another replica showed."""
        with self._lock:
            row = self._unwritten.get(shown_id)
        if row is None:
            for look in range(_LOOKS if _OURS.fullmatch(shown_id) else 1):
                if look:
                    time.sleep(_PAUSE)
                if (found := self._store.find_shown(namespace, shown_id)) is not None:
                    return cast(Shown, dict(found._mapping))
            return None
        return row if row["namespace"] == namespace else None

    def wait(self) -> None:
        """Wait until all that was added before is written."""
        written = threading.Event()
        self._queue.put(written)
        written.wait()

    def close(self) -> None:
        """Write what waits, and stop."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            first = self._queue.get()
            rows = [first]
            while len(rows) < _AT_ONCE and rows[-1] is not None:
                try:
                    rows.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            real = [row for row in rows if isinstance(row, dict)]
            try:
                if real:
                    self._store.add_shown(real)
                self._take_out(real)
            except Exception as error:  # a thread that ends would leave whoever waits waiting
                self._drop(real, reason_of(error))
            for written in rows:
                if isinstance(written, threading.Event):
                    written.set()
            if rows[-1] is None:
                return

    def _take_out(self, rows: list[Shown]) -> None:
        with self._lock:
            for row in rows:
                if self._unwritten.pop(row["id"], None) is not None:
                    self._characters -= _size(row)

    def _drop(self, rows: list[Shown], why: str) -> None:
        self._take_out(rows)
        self.lost += len(rows)
        logger.warning("%d records of what was shown are lost: %s", len(rows), why)


def _size(row: Shown) -> int:
    return len(row["prompt"]) + len(row["responses"])
