"""Who may ask, how much, and how often: checked before a request reaches an endpoint."""

import asyncio
import time

from anyio.to_thread import run_sync
from limits import parse as parse_rate
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rerank.service.engine import Engine
from rerank.service.http.common import described

_OPEN = ("/healthz", "/readyz")  # for load balancers, which have no key
_KEPT_FOR = 10.0  # seconds for which a key's namespace is believed
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class Gate:
    """ASGI middleware: key, rate, size and number of requests; counts and times them.

    Args:
        needs_key: false where the service listens on loopback: requests without a key then have the unnamed namespace,
            and those with any key while there are none.
    """

    def __init__(self, app: ASGIApp, engine: Engine, needs_key: bool):
        self._app, self._engine, self._needs_key = app, engine, needs_key
        self._config, self._metrics = engine.config, engine.metrics
        self._rate = parse_rate(engine.config.rate)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._namespaces: dict[str, tuple[str | None, float]] = {}
        self._in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def sent(event: Message) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                headers = MutableHeaders(scope=event)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(event)

        try:
            await self._pass(scope, receive, sent)
        except _RefusedError as error:
            reply = JSONResponse(described(error.status, error.message), error.status, error.headers)
            await reply(scope, receive, sent)
        finally:
            # the route's pattern: paths hold ids
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(scope["method"], route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        if scope["path"] in _OPEN:
            await self._app(scope, receive, send)
            return
        state["namespace"] = await self._namespace(scope)
        if self._in_work >= self._config.max_requests:
            raise _RefusedError(503, "too many requests are in work", **{"Retry-After": "1"})
        self._in_work += 1
        try:
            body = await self._body(scope, receive)
            await self._app(scope, _replayed(body, receive), send)
        finally:
            self._in_work -= 1

    async def _namespace(self, scope: Scope) -> str:
        """The namespace of the request's key. Refuses a missing or unknown key, and one that asks too often."""
        key = _key_of(Headers(scope=scope))
        if key is None:
            if self._needs_key:
                raise _RefusedError(401, "an API key is missing", **{"WWW-Authenticate": "Bearer"})
            return ""
        namespace, until = self._namespaces.get(key, (None, 0.0))
        if until < time.monotonic():
            try:
                namespace = await run_sync(self._engine.store.namespace_of, key)
                if namespace is None and not self._needs_key and not await run_sync(self._engine.store.has_keys):
                    namespace = ""  # there are no keys, but the clients of OpenAI and Cohere always send one
            except SQLAlchemyError:
                raise _RefusedError(503, "the database does not answer", **{"Retry-After": "5"}) from None
            if len(self._namespaces) > 10_000:
                self._namespaces.clear()
            self._namespaces[key] = (namespace, time.monotonic() + _KEPT_FOR)
        if namespace is None:
            raise _RefusedError(401, "the API key is not known", **{"WWW-Authenticate": "Bearer"})
        if not await self._limiter.hit(self._rate, namespace, str(hash(key))):
            raise _RefusedError(429, f"more than {self._config.rate} requests", **{"Retry-After": "1"})
        return namespace

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Refuses one that is too large or too slow."""
        most, content = self._config.max_body_bytes, bytearray()
        try:
            async with asyncio.timeout(self._config.body_timeout):
                while True:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise _RefusedError(400, "the connection ended before the body")
                    content += event.get("body", b"")
                    if len(content) > most:
                        raise _RefusedError(413, f"the body has more than {most:,} bytes")
                    if not event.get("more_body", False):
                        return bytes(content)
        except TimeoutError:
            raise _RefusedError(408, "the body did not come in time") from None


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
