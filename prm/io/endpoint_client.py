"""Requests to an endpoint through the `openai` client, which only this module imports (extra `endpoint`).

Importing it raises `PrmError` if the client is not installed.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from prm.errors import PrmError, shown
from prm.io.endpoint import Endpoint, EndpointError, Reply, StatusError, UnansweredError, read_replies
from prm.io.tables import plain

try:
    import httpx2
    import openai
    from anyio.from_thread import start_blocking_portal
except ModuleNotFoundError as missing:
    if missing.name not in ("openai", "httpx2", "anyio"):
        raise
    raise PrmError("an endpoint needs the openai client: pip install 'personalized-rm[endpoint]'") from None

_MAX_BYTES = 10_000_000  # of a response; a judge writes a few kilobytes
_FATAL = (401, 402, 403, 404)  # key, payment, address or model: every request fails alike

Body = Mapping[str, object]
Keep = Callable[[str, list[Reply]], None]
Failed = Callable[[str, UnansweredError], None]


def ask_all(endpoint: Endpoint, bodies: Mapping[str, Body], keep: Keep, failed: Failed) -> None:
    """Send the requests, `concurrency` at a time, and call `keep` or `failed` as each of them ends.

    Works inside a notebook's event loop too; Ctrl-C cancels the requests in flight.

    Raises `EndpointError` if every other request would fail alike, and whatever `keep` and `failed` raise: no further
    request is sent then, and replies in flight are kept.

    Args:
        bodies: request bodies by key.
        keep: receives a key and all choices of the reply.
    """
    with start_blocking_portal() as portal:
        portal.call(_ask_all, endpoint, iter(bodies.items()), keep, failed)


def model_names(endpoint: Endpoint) -> list[str]:
    """The names of the models that the endpoint serves. Raises `EndpointError` if it does not say."""
    with start_blocking_portal() as portal:
        content: bytes = portal.call(_models, endpoint)
    try:
        return [str(model["id"]) for model in plain(json.loads(content))["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EndpointError(f"{endpoint.url}/models: not a list of models: {_message(content)}") from None


class Connection:
    """A connection to an endpoint that stays open, for many threads.

    A request is sent once more if the connection was lost, and never because of a status.
    """

    def __init__(self, endpoint: Endpoint):
        self.endpoint, self._loop = endpoint, asyncio.new_event_loop()
        self._client = _client(replace(endpoint, max_retries=0))
        # a daemon: a program that ends without `close` ends
        self._thread = threading.Thread(target=self._loop.run_forever, name="asks an endpoint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close it, once no request is in flight."""
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def ask(self, path: str, bodies: Sequence[Body | None], timeout: float) -> list[bytes | StatusError]:
        """The content of the response to each body, or why there is none; all are sent together.

        Args:
            path: below the endpoint's URL, such as `/chat/completions`.
            bodies: to post; `None` is a GET.
            timeout: seconds until the requests are given up.

        Raises `EndpointError` for a key that no header can hold.
        """
        return asyncio.run_coroutine_threadsafe(self._ask(path, bodies, timeout), self._loop).result()

    async def _ask(self, path: str, bodies: Sequence[Body | None], timeout: float) -> list[bytes | StatusError]:
        return list(await asyncio.gather(*(self._content(path, body, timeout) for body in bodies)))

    async def _content(self, path: str, body: Body | None, timeout: float) -> bytes | StatusError:
        try:
            async with asyncio.timeout(timeout):
                try:
                    return (await _send(self.endpoint, self._client, path, body)).content
                except openai.APITimeoutError:
                    raise
                except openai.APIConnectionError:  # the endpoint had closed a connection that was idle
                    return (await _send(self.endpoint, self._client, path, body)).content
        except (TimeoutError, openai.APITimeoutError):
            return StatusError(504, f"no answer within {timeout:g} s")
        except openai.APIStatusError as error:
            wait = error.response.headers.get("retry-after", "")
            message = _message_of(self.endpoint, error)
            return StatusError(error.status_code, message, int(wait) if wait.isdecimal() else None)
        except openai.APIConnectionError as error:
            fault = error.__cause__ or error
            return StatusError(502, f"no answer: {type(fault).__name__} {fault}".rstrip())


async def _models(endpoint: Endpoint) -> bytes:
    async with _client(endpoint) as client:
        try:
            return await _fetch(endpoint, client, "/models")
        except UnansweredError as error:
            raise EndpointError(f"{endpoint.url}/models: {error}; name the model") from None


async def _ask_all(endpoint: Endpoint, requests: Iterator[tuple[str, Body]], keep: Keep, failed: Failed) -> None:
    faults: list[Exception] = []

    async def work(client: openai.AsyncOpenAI) -> None:
        for key, body in requests:  # all workers share one iterator
            try:
                replies = read_replies(await _fetch(endpoint, client, "/chat/completions", body))
                keep(key, replies)
            except UnansweredError as error:
                failed(key, error)
            if faults:
                return

    async def guarded(client: openai.AsyncOpenAI) -> None:
        try:
            await work(client)
        except Exception as error:  # the others wait for the replies that they paid for, and send no more
            faults.append(error)

    async with _client(endpoint) as client, asyncio.TaskGroup() as group:
        for _ in range(endpoint.concurrency):
            group.create_task(guarded(client))
    if faults:
        raise faults[0]


def _client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=endpoint.url,
        api_key=endpoint.key or "none",
        timeout=endpoint.timeout,
        max_retries=endpoint.max_retries,
        http_client=_BoundedClient(endpoint.timeout),
    )


class _BoundedClient(openai.DefaultAsyncHttpxClient):
    """Limits the total time and size of a response, and follows no redirect, which would receive texts and key."""

    def __init__(self, timeout: float):
        super().__init__(follow_redirects=False, headers={"Accept-Encoding": "identity"})
        self._seconds = timeout

    async def send(self, request: httpx2.Request, **settings: object) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._seconds):
                response = await super().send(request, **settings | {"stream": True})
                try:
                    content = await _content(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise httpx2.ReadTimeout(f"no complete response within {self._seconds:g} s", request=request) from None
        headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
        return httpx2.Response(response.status_code, headers=headers, content=content, request=request)


async def _content(response: httpx2.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _MAX_BYTES:
            raise httpx2.ReadError(f"a response of more than {_MAX_BYTES:,} bytes", request=response.request)
    return bytes(content)


async def _fetch(endpoint: Endpoint, client: openai.AsyncOpenAI, path: str, body: Body | None = None) -> bytes:
    """The content of a response; posts the body if there is one. Raises `UnansweredError` or `EndpointError`."""
    try:
        return (await _send(endpoint, client, path, body)).content
    except openai.APIStatusError as error:
        raise _refused(endpoint, error) from None
    except openai.APIConnectionError as error:
        fault = error.__cause__ or error
        detail = f"{type(fault).__name__} {fault}".rstrip()
        raise UnansweredError(f"no answer: {detail}, after {endpoint.max_retries + 1} attempts") from None


async def _send(endpoint: Endpoint, client: openai.AsyncOpenAI, path: str, body: Body | None) -> httpx2.Response:
    """A response; posts the body if there is one. Raises the client's errors."""
    options = {"headers": {} if endpoint.key else {"Authorization": openai.Omit()}}
    if body is None:
        return await client.get(path, options=options, cast_to=httpx2.Response)
    return await client.post(path, body=dict(body), options=options, cast_to=httpx2.Response)


def _refused(endpoint: Endpoint, error: openai.APIStatusError) -> Exception:
    """The error for an HTTP status: `EndpointError` if it concerns all requests, else `UnansweredError`."""
    message = _message_of(endpoint, error)
    status, fault = error.status_code, f"HTTP {error.status_code} {message}".rstrip()
    if status in (401, 403):
        hint = f"is the key in the environment variable {endpoint.key_variable} right?"
        return EndpointError(f"{endpoint.url}: {fault}; {hint if endpoint.key else f'set {endpoint.key_variable}'}")
    if status in _FATAL or status < 400 or "insufficient_quota" in message:
        return EndpointError(f"{endpoint.url}, model {endpoint.model!r}: {fault}; fix the address, model or account")
    if status in (408, 409, 429) or status >= 500:
        return UnansweredError(f"no answer: {fault}, after {endpoint.max_retries + 1} attempts")
    return UnansweredError(f"HTTP {status}: {message}", own=True)


def _message_of(endpoint: Endpoint, error: openai.APIStatusError) -> str:
    """The server's error message without the key, which some servers repeat when they refuse it."""
    message = _message(error.response.content)
    return message.replace(endpoint.key, "***") if endpoint.key else message


def _message(raw: bytes) -> str:
    """The server's error message, shortened if it is long."""
    text = raw.decode(errors="replace").strip()
    try:
        error = plain(json.loads(text))["error"]
        text = f"{error['message']} {error.get('code') or ''}".strip() if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return shown(text) if text else ""
