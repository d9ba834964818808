"""Connections that end early, stay open, or are not read."""

import re
import socket
import time
from contextlib import ExitStack
from itertools import count

import pytest

from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from tests.rerank.service.conftest import MakeEngine
from tests.rerank.service.sockets import listening, request, send

RANK = request("POST", "/v1/rerank", '{"query": "what?", "documents": ["a king", "a dog"]}')


def seconds_until_closed(connection: socket.socket, sends: bytes = b"") -> float:
    """How long the server keeps a connection, over which `sends` is sent again and again."""
    started = time.monotonic()
    connection.settimeout(0.02)
    for _ in count():
        assert time.monotonic() - started < 10
        try:
            if sends:
                connection.sendall(sends)
            if not connection.recv(65_536):
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    return time.monotonic() - started


def test_who_sends_no_more_still_gets_the_reply(engine: Engine) -> None:
    with listening(build_app(engine), engine.config) as port:
        assert send(port, RANK, half_close=True).status == 200
        for cut in (-5, -52):
            reply = send(port, RANK[:cut], half_close=True)
            assert (reply.status, bool(reply.message)) == (400, True)
        reply = send(port, RANK[:20], half_close=True)
        assert (reply.status, bool(reply.message)) == (400, True)
        assert send(port, b"", half_close=True).status == 0
        assert send(port, RANK * 3, half_close=True).status == 200
        assert send(port, RANK).status == 200


def test_open_connections_have_a_limit_and_a_time(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that say nothing end; so do those that were answered and send on, or begin again and stop."""
    monkeypatch.setattr("rerank.service.http.server._LINGER", 0.5)
    engine = make_engine(max_connections=12, body_timeout=0.3, max_body_bytes=1000)
    with listening(build_app(engine), engine.config) as port, ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", port)))

        idle = [connect() for _ in range(12)]
        time.sleep(0.1)
        refused = send(port, RANK)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert refused.message
        assert all(seconds_until_closed(connection) < 1 for connection in idle)
        assert send(port, RANK).status == 200

        again = connect()
        again.sendall(RANK + request("GET", "/metrics")[:10])
        assert 0.2 < seconds_until_closed(again) < 1
        endless = connect()
        endless.sendall(request("POST", "/v1/rerank", b"", Content_Length="99999999"))
        assert 0.4 < seconds_until_closed(endless, sends=b"x" * 1000) < 2
        open_path = connect()
        open_path.sendall(request("GET", "/healthz", b"", Content_Length="99999999"))
        assert 0.4 < seconds_until_closed(open_path, sends=b"x") < 2


def test_a_reply_that_nobody_reads_ends(make_engine: MakeEngine) -> None:
    engine = make_engine(timeout=0.3)
    with listening(build_app(engine), engine.config) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(request("GET", "/openapi.json") * 300)
        started, ended = time.monotonic(), False
        while not ended and time.monotonic() - started < 10:
            try:
                connection.sendall(b"\r\n")
                time.sleep(0.05)
            except ConnectionError:
                ended = True
        assert ended
        assert send(port, RANK).status == 200


def test_requests_that_follow_at_once_are_answered_in_turn(engine: Engine) -> None:
    with listening(build_app(engine), engine.config) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(RANK + request("GET", "/nope") + request("GET", "/healthz", Connection="close"))
            content = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert re.findall(rb"HTTP/1\.1 (\d+)", content) == [b"200", b"404", b"200"]
