"""Kills and failing databases: what was acknowledged is there, once, and nothing is half written."""

import itertools
import os
import random
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event, select
from starlette.testclient import TestClient

from prm.data.sources.store.schema import feedback
from rerank.cli import main
from rerank.service.http.app import build_app
from rerank.service.store import Store
from tests.postgres import Server
from tests.rerank.service.conftest import MakeEngine, on_both, until
from tests.rerank.service.test_engine import KING, NONE, PROMPT

PAIR = {"type": "pair", "prompt": PROMPT, "chosen": KING, "rejected": NONE}
forks = get_context("forkserver")  # one process loads torch, and each service is a fork of it
forks.set_forkserver_preload(["rerank.cli", "rerank.service.http.app", "prm.scoring.scorer", "uvicorn"])


def start(arguments: list[str]) -> int:
    """Run `rerank` with arguments; returns the number of the process."""
    process = forks.Process(target=main, args=(arguments,), daemon=True)
    process.start()
    assert process.pid is not None
    return process.pid


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=1.0).status_code == 200
    except httpx.TransportError:
        return False


class Client:
    """Gives feedback after feedback of three users, each until it is acknowledged."""

    def __init__(self, address: str, name: int):
        self.address, self.name, self.stops = address, name, threading.Event()
        self.acknowledged: dict[str, tuple[int, str]] = {}
        self.retried = 0
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self) -> None:
        with httpx.Client(base_url=self.address, timeout=30.0) as http:
            for i in itertools.count():
                if self.stops.is_set():
                    return
                key, user = f"{self.name}-{i}", f"u{i % 3}"
                while True:
                    try:
                        reply = http.post("/v1/feedback", json={**PAIR, "user": user, "idempotency_key": key})
                    except httpx.TransportError:
                        time.sleep(0.05)
                    else:
                        if reply.status_code == 200:
                            break
                        assert reply.status_code == 503, reply.text
                    self.retried += 1
                self.acknowledged[key] = (reply.json()["id"], user)


@contextmanager
def clients_of(address: str, n: int) -> Iterator[list[Client]]:
    clients = [Client(address, i) for i in range(n)]
    try:
        yield clients
    finally:
        for client in clients:
            client.stops.set()
        for client in clients:
            client.thread.join()


def killed_under_load(run: Path, url: str, kills: int, server: Server | None) -> None:
    """Kill the service so many times, or the server of its database, while four clients give feedback."""
    port, draw = free_port(), random.Random(0)
    address = f"http://127.0.0.1:{port}"
    arguments = ["serve", str(run), "--store", url, "--port", str(port), "--device", "cpu"]
    pid = start(arguments)
    try:
        until(lambda: answers(address), 300.0)
        with clients_of(address, 4) as clients:
            for _ in range(kills):
                before = sum(len(client.acknowledged) for client in clients)
                until(lambda before=before: sum(len(c.acknowledged) for c in clients) > before + 8, 300.0)  # type: ignore[misc]
                time.sleep(draw.random() * 0.05)
                if server is not None and draw.random() < 0.5:
                    server.stop()
                    server.start()
                else:
                    os.kill(pid, signal.SIGKILL)
                    pid = start(arguments)
    finally:
        os.kill(pid, signal.SIGKILL)
    given = {key: ack for client in clients for key, ack in client.acknowledged.items()}
    assert any(client.retried for client in clients)
    store = Store(url)
    try:
        with store.engine.connect() as connection:
            rows = list(connection.execute(select(feedback)))
        assert {row.idempotency_key: (row.id, row.user_id) for row in rows} == given
        assert len(rows) == len(given)
        users = [("", f"u{i}") for i in range(3)]
        counted = {user: person.comparisons for user, person in store.saved(users).items()}
        assert counted == {user: len(store.comparisons_of(user)) for user in users}
        assert {user[1]: n for user, n in counted.items()} == Counter(row.user_id for row in rows)
    finally:
        store.close()


@on_both
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_what_was_acknowledged_survives_kills(
    kills: int, run_of: Callable[[str], Path], store_url: str, request: pytest.FixtureRequest
) -> None:
    """`kill -9` of the service, and PostgreSQL stopped at once: clients send again what was not acknowledged."""
    server = request.getfixturevalue("postgres") if store_url.startswith("postgres") else None
    killed_under_load(run_of("bayes"), store_url, kills, server)


def give(client: TestClient, key: str, **changes: object) -> tuple[int, dict[str, object]]:
    """(status, body) of the reply to a feedback of zoe."""
    reply = client.post("/v1/feedback", json={**PAIR, "user": "zoe", "idempotency_key": key, **changes})
    return reply.status_code, reply.json()


@pytest.mark.postgres
@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
def test_a_database_that_goes_and_comes_back(make_engine: MakeEngine, postgres: Server) -> None:
    engine = make_engine()
    with TestClient(build_app(engine), base_url="http://localhost") as client:
        assert give(client, "one")[0] == 200
        assert give(client, "nul", user="a\0b")[0] == 400
        postgres.stop()
        assert give(client, "two")[0] == 503
        for reply in (client.get("/readyz"), client.delete("/v1/users/zoe")):
            assert reply.status_code == 503
        postgres.start()
        time.sleep(1.0)  # for so long an answer is believed
        assert client.get("/readyz").status_code == 200
        assert give(client, "two")[1]["known_by"] == 2
        assert give(client, "two")[1]["again"]
        assert client.delete("/v1/users/zoe").json()["records"] == 5


@pytest.mark.parametrize("kind", ["pair", "thumb"])
def test_a_full_disk_keeps_nothing_half_and_recovers(kind: str, make_engine: MakeEngine) -> None:
    """Of a pair it is the comparisons that find no room, of a thumb the feedback itself."""
    engine = make_engine()
    limits = {"pages": 2**30}

    def limit(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count={limits['pages']}")

    def said(client: TestClient, i: int) -> tuple[int, dict[str, object]]:
        if kind == "pair":
            return give(client, f"{i}")
        thumb = {"type": "thumb", "user": "zoe", "prompt": f"{PROMPT} {i}", "response": KING, "up": True}
        reply = client.post("/v1/feedback", json={**thumb, "idempotency_key": f"{i}"})
        return reply.status_code, reply.json()

    event.listen(engine.store.engine, "checkout", limit)
    with TestClient(build_app(engine), base_url="http://localhost") as client:
        assert said(client, 0)[0] == 200
        limits["pages"] = 1  # as many as there are
        for taken in range(1, 100):
            status, body = said(client, taken)
            if status != 200:
                break
        assert (status, "no room" in str(body["error"])) == (507, True)
        counts, known_by = engine.store.counts(), taken if kind == "pair" else 0
        assert (counts["feedback"], counts["comparisons"]) == (taken, known_by)
        assert engine.people.one(("", "zoe")).comparisons == known_by
        assert client.post("/v1/rerank", json={"query": PROMPT, "documents": [KING, NONE]}).status_code == 200
        limits["pages"] = 2**30
        status, body = said(client, taken)
        assert (status, body["comparisons"], body["again"]) == (200, kind == "pair", False)
