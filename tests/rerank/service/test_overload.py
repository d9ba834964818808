"""Twice the load that the service bears: it refuses what is too much, and is as quick afterwards as before."""

import gc
import itertools
import json
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from rerank.service.http.app import build_app
from tests.rerank.service.conftest import MakeEngine
from tests.rerank.service.sockets import listening, request, send

FRESH = itertools.count()
READING = 0.02  # seconds that reading texts takes, however many: the service bears a known load
CLIENTS = 4  # as many requests in work as it takes


class Load(NamedTuple):
    """Statuses, and seconds of the accepted requests."""

    statuses: list[int]
    seconds: list[float]


def load(port: int, clients: int, duration: float) -> Load:
    """Clients that rank fresh texts, each one request after another."""
    found, end = Load([], []), time.monotonic() + duration

    def work() -> None:
        while (started := time.monotonic()) < end:
            body = {"query": f"what of {next(FRESH)}?", "documents": ["a king", "a dog"], "user": "zoe"}
            reply = send(port, request("POST", "/v1/rerank", json.dumps(body)))
            found.statuses.append(reply.status)
            if reply.status == 200:
                found.seconds.append(time.monotonic() - started)
            else:
                assert "retry-after" in reply.headers
                time.sleep(0.01)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def resident() -> int:
    """Bytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def overload(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, duration: float) -> None:
    engine = make_engine(max_requests=CLIENTS, kept_megabytes=1, timeout=5.0)
    read = engine.texts._read

    def slow_read(texts: object) -> object:
        time.sleep(READING)
        return read(texts)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.texts, "_read", slow_read)
    with listening(build_app(engine), engine.config) as port:
        load(port, CLIENTS // 2, duration / 4)  # what is made once is made
        before = load(port, CLIENTS // 2, duration / 2)
        held = resident()
        over = load(port, 3 * CLIENTS, duration)
        grown = resident() - held
        after = load(port, CLIENTS // 2, duration / 2)
    assert set(before.statuses) == set(after.statuses) == {200}
    assert set(over.statuses) == {200, 503}
    p99_before, p99_over = (np.quantile(one.seconds, 0.99) for one in (before, over))
    assert p99_over < 10 * p99_before + 0.5
    assert np.median(after.seconds) < 1.5 * np.median(before.seconds) + 0.01
    assert grown < 30e6


def test_twice_the_load(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    overload(make_engine, monkeypatch, 2.0)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_minutes_of_twice_the_load(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    overload(make_engine, monkeypatch, 120.0)
