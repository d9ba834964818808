"""Who may ask, what, how much and how often: checked before a request reaches an endpoint."""

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from urllib.parse import unquote_to_bytes

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from limits import parse as parse_rate
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prm.errors import DataError
from rerank.service.engine import Engine
from rerank.service.errors import place_of
from rerank.service.http.common import described
from rerank.service.http.json_body import check_json
from rerank.service.http.known_keys import KnownKeys
from rerank.service.store import KEY_START

logger = logging.getLogger(__name__)

HEALTH = ("/healthz", "/readyz")  # for load balancers, which have no key and name the host as they like
_PAGE = ("/", "/page/")  # files alone: what they ask for needs the key
_USERS = "/v1/users/"  # an id follows: its slashes, which are encoded, do not divide the path
_CHATS = ("/v1/chat/completions", "/v1/models")  # wait for the upstream
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BODIES = 16  # of the largest size may be in memory at a time
MOST_HEADER_BYTES = 16_384
_LARGE = 2**16  # bytes of JSON that would hold up other requests while they are parsed
HEADERS = {  # of every reply: no browser keeps, frames or guesses at it
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
}


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Gate:
    """ASGI middleware: host, key, rate, size, form and number of requests; counts and times them.

    Whatever goes wrong behind it is answered with 500, and logged without what users wrote.

    Args:
        needs_key: false where the service listens on loopback: requests without a key then have the unnamed namespace.
        hosts: names by which it may be addressed; "*" is any, "*.example.com" any below.
        origins: sites whose pages may ask where no key is needed, beside the service's own; "*" is any.
    """

    def __init__(self, app: ASGIApp, engine: Engine, needs_key: bool, hosts: Collection[str], origins: Collection[str]):
        self._app, self._needs_key = app, needs_key
        self._hosts, self._origins = [host.lower() for host in hosts], set(origins)
        self._config, self._metrics = engine.config, engine.metrics
        self._rate = parse_rate(engine.config.rate)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())  # a number per key, whatever the rate
        self._keys, self._parsing = KnownKeys(engine.store), CapacityLimiter(1)
        self._in_work, self._buffered = {"requests": 0, "chats": 0}, 0
        self._most = {"requests": engine.config.max_requests, "chats": engine.config.max_chats}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is none here
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def sent(event: Message) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                headers = MutableHeaders(scope=event)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(event)

        async def reply(code: int, message: str, headers: dict[str, str] | None = None) -> None:
            await JSONResponse(described(code, message), code, headers)(scope, receive, sent)

        try:
            await self._pass(scope, receive, sent)
        except _RefusedError as error:
            await reply(error.status, error.message, error.headers)
        except Exception as error:
            logger.error("a request failed: %s", place_of(error))
            if not status:  # otherwise the server breaks off what was begun
                await reply(500, "the service failed: see its log")
        finally:
            # the route's pattern: paths hold ids
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            seconds = time.perf_counter() - started
            self._metrics.requests.labels(method, route, status or 500).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if scope["path"] not in HEALTH:
                logger.info("%s %s %d, %.0f ms", method, route, status or 500, 1000 * seconds)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path in HEALTH:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        _check_head(scope)
        if path.startswith(_USERS):
            scope["path"] = scope.get("raw_path", path.encode()).decode()
        host = self._host(headers)
        if path == _PAGE[0] or path.startswith(_PAGE[1]):  # no body is read for those without a key
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["namespace"] = await self._namespace(headers, host)
        async with self._body(headers, receive) as body:
            kind = "chats" if path in _CHATS else "requests"
            if self._in_work[kind] >= self._most[kind]:
                raise _RefusedError(503, f"too many {kind} are in work", Retry_After="1")
            self._in_work[kind] += 1
            try:
                await self._app(scope, _replayed(body, receive), send)
            finally:
                self._in_work[kind] -= 1

    def _host(self, headers: Headers) -> str:
        """The name by which the service is addressed, and the port. Refuses a name that is not its own."""
        host = headers.get("host", "").lower()
        match = _HOST.fullmatch(host)
        if match is None:
            raise _RefusedError(400, "the header Host is missing or wrong")
        name = match[1]
        if not any(name == own or own == "*" or (own[:2] == "*." and name.endswith(own[1:])) for own in self._hosts):
            raise _RefusedError(400, "the service has another name than the header Host says: see --allowed_host")
        return host

    async def _namespace(self, headers: Headers, host: str) -> str:
        """The namespace of the request's key. Refuses a missing or unknown key, and one that asks too often."""
        key = _key_of(headers)
        if not self._needs_key and (key is None or not key.startswith(KEY_START)):
            # no page of another site may use what a browser on this machine can reach
            origin = headers.get("origin")
            own = origin is None or origin.lower().partition("://")[2] == host
            if not own and not self._origins & {origin, "*"}:
                raise _RefusedError(403, "pages of other sites may not ask: see --allow_origin")
            return ""
        try:
            namespace = None if key is None else await self._keys.namespace_of(key)
        except SQLAlchemyError:
            raise _RefusedError(503, "the database does not answer", Retry_After="5") from None
        if namespace is None:
            message = "a valid API key is needed: send the header 'Authorization: Bearer KEY'"
            raise _RefusedError(401, message, WWW_Authenticate="Bearer")
        assert key is not None
        identifiers = namespace, str(hash(key))
        if not await self._limiter.hit(self._rate, *identifiers):
            wait = (await self._limiter.get_window_stats(self._rate, *identifiers)).reset_time - time.time()
            message = f"more than {self._config.rate} requests"
            raise _RefusedError(429, message, Retry_After=str(max(1, math.ceil(wait))))
        return namespace

    @asynccontextmanager
    async def _body(self, headers: Headers, receive: Receive) -> AsyncIterator[bytes]:
        """Yield the whole body. Refuses one that is too large, too slow or no JSON; bounds the memory of all bodies."""
        most, content = self._config.max_body_bytes, bytearray()
        too_large = _RefusedError(413, f"the body has more than {most:,} bytes")
        length = headers.get("content-length")
        if length is not None and "transfer-encoding" in headers:
            raise _RefusedError(400, "the headers Content-Length and Transfer-Encoding exclude each other")
        if length is not None and int(length) > most:
            raise too_large
        try:
            try:
                async with asyncio.timeout(self._config.body_timeout):
                    more = True
                    while more:
                        event = await receive()
                        if event["type"] == "http.disconnect":
                            raise _RefusedError(400, "the connection ended before the body")
                        part, more = event.get("body", b""), event.get("more_body", False)
                        content += part
                        self._buffered += len(part)
                        if len(content) > most:
                            raise too_large
                        if self._buffered > _BODIES * most:
                            raise _RefusedError(503, "too many large bodies are in work", Retry_After="1")
            except TimeoutError:
                raise _RefusedError(408, "the body did not come in time") from None
            body = bytes(content)
            if body:
                await self._check_json(headers, body)
            yield body
        finally:
            self._buffered -= len(content)

    async def _check_json(self, headers: Headers, body: bytes) -> None:
        if headers.get("content-encoding", "identity") != "identity":
            raise _RefusedError(415, "compressed bodies are not read: send it without Content-Encoding")
        kind, _, parameters = headers.get("content-type", "").lower().partition(";")
        if kind.strip() != "application/json" or parameters.strip().replace('"', "") not in ("", "charset=utf-8"):
            raise _RefusedError(415, "a body is JSON in UTF-8: send it with 'Content-Type: application/json'")
        try:
            if len(body) < _LARGE:
                check_json(body)
            else:
                await run_sync(check_json, body, limiter=self._parsing)
        except DataError as error:
            raise _RefusedError(400, str(error)) from None


def _check_head(scope: Scope) -> None:
    """Refuse another HTTP, headers that are too large, and a path that is no text: two ids must not become one."""
    if scope.get("http_version", "1.1") not in ("1.0", "1.1"):
        raise _RefusedError(400, "the service speaks HTTP/1.1")
    texts = [scope.get("raw_path") or b"", scope["query_string"], *(part for pair in scope["headers"] for part in pair)]
    if sum(map(len, texts)) > MOST_HEADER_BYTES:
        raise _RefusedError(431, f"path and headers have more than {MOST_HEADER_BYTES:,} bytes")
    try:
        unquote_to_bytes(scope.get("raw_path") or b"").decode()
    except UnicodeDecodeError:
        raise _RefusedError(400, "the path is not UTF-8") from None
    if _CONTROL.search(scope["path"]):
        raise _RefusedError(400, "the path has a control character")


def _key_of(headers: Headers) -> str | None:
    """The key of `Authorization: Bearer KEY`, as the clients of OpenAI and Cohere send it."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` that begins with a body that was read before."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
