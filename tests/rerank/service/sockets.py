"""The service behind a real socket, and a client that sends whatever bytes it is given."""

import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from starlette.types import ASGIApp

from rerank.service.config import ServiceConfig
from rerank.service.http.server import build_server


class Reply(NamedTuple):
    """Status, headers (names in lower case) and body of a reply; status 0 if the connection ended without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        """What the error says; it has the documented form."""
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "code"}
        assert error["code"] == self.status
        return error["message"]


@contextmanager
def listening(app: ASGIApp, config: ServiceConfig) -> Iterator[int]:
    """Serve on a free port of loopback, which is yielded."""
    server = build_server(app, "127.0.0.1", 0, config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def send(port: int, parts: bytes | Iterable[bytes | float], half_close: bool = False, wait: float = 10.0) -> Reply:
    """Send bytes, with pauses of so many seconds where a number stands among them, and read one reply."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        try:
            for part in [parts] if isinstance(parts, bytes) else parts:
                if isinstance(part, bytes):
                    connection.sendall(part)
                else:
                    time.sleep(part)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass  # the reply may be there
        return _read(connection)


def _read(connection: socket.socket) -> Reply:
    content = b""
    while b"\r\n\r\n" not in content:
        part = connection.recv(65_536)
        if not part:
            return Reply(0, {}, content)
        content += part
    head, _, body = content.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        part = connection.recv(65_536)
        if not part:
            break
        body += part
    return Reply(int(first.split()[1]), headers, body[: int(headers.get("content-length", 0))])


def request(method: str, path: str, body: bytes | str = b"", host: str = "localhost", **headers: str) -> bytes:
    """A request as bytes; headers are names with `_` for `-`, and an empty value leaves one out."""
    content = body.encode() if isinstance(body, str) else body
    given = {"Host": host, "Content_Type": "application/json" if content else ""} | headers
    if content and "Transfer_Encoding" not in given:
        given.setdefault("Content_Length", str(len(content)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{k.replace('_', '-')}: {v}" for k, v in given.items() if v)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content
