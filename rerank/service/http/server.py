"""The server under the application: uvicorn, with limits on connections that say nothing or never end."""

import asyncio

import h11
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from rerank.service.config import ServiceConfig
from rerank.service.http.common import described
from rerank.service.http.gate import HEADERS, MOST_HEADER_BYTES

_IDLE = 5  # seconds that a connection is kept between requests
_LINGER = 2.0  # seconds for which the rest of a body is read that nobody wants, so that the client sees the reply


def build_server(app: ASGIApp, host: str, port: int, config: ServiceConfig) -> uvicorn.Server:
    """A server that listens on an address.

    One request's headers, the wait for its body, and the reading of its reply have a time each; the number of
    connections has a limit. What HTTP itself refuses is answered in the form of all errors.
    """

    class Protocol(_Protocol):
        settings = config

    return uvicorn.Server(
        uvicorn.Config(
            app,
            host,
            port,
            http=Protocol,
            loop="asyncio",
            ws="none",
            log_config=None,
            log_level="info",  # below it uvicorn writes down paths, which have ids
            access_log=False,  # it has ids
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=max(1, round(config.timeout)),
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        )
    )


class _Protocol(H11Protocol):
    settings: ServiceConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting: asyncio.TimerHandle | None = None  # for a request's headers, or for the end of an unwanted body
        self._unread: asyncio.TimerHandle | None = None  # a reply that the client does not read
        if len(self.connections) > self.settings.max_connections:
            self._refuse(503, "too many connections are open", {"Retry-After": "1"})
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._wait()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client will send nothing more: it may still read."""
        if self._in_request():
            if not self.cycle.more_body:
                self.cycle.keep_alive = False
                return True
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if not self.cycle.response_started:
                self._refuse(400, "the connection ended before the body")
        elif self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            self._refuse(400, "the connection ended before the headers")
        return False

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
        elif len(self.conn.trailing_data[0]) > MOST_HEADER_BYTES:
            self._refuse(431, f"path and headers have more than {MOST_HEADER_BYTES:,} bytes")
        else:
            self._refuse(400, "no valid request of HTTP/1.1")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.settings.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        """Set the time for what the client has begun and not finished, if nothing else sets one."""
        begun = self.cycle is None or bool(self.conn.trailing_data[0])
        unwanted = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if self.transport.is_closing() or self._in_request() or not (begun or unwanted):
            self._end_waiting()
        elif self._waiting is None:
            after = _LINGER if unwanted else self.settings.body_timeout
            self._waiting = self.loop.call_later(after, self._waited_too_long)

    def _end_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _waited_too_long(self) -> None:
        self._waiting = None
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, "the headers did not come in time")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Answer without the application, and close."""
        reply = JSONResponse(described(status, message), status, {**HEADERS, "Connection": "close", **(headers or {})})
        head = h11.Response(status_code=status, headers=reply.raw_headers, reason=b"")
        for event in (head, h11.Data(data=bytes(reply.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
