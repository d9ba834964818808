"""Questions to an endpoint through the `openai` client, which is imported here alone (extra `judge`)."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx2
import openai
from anyio.from_thread import start_blocking_portal

from policy.judging.judges.endpoint import Endpoint, EndpointError, Reply, UnansweredError, read_reply
from prm.errors import shown
from prm.io.tables import plain

_MOST_BYTES = 10_000_000  # of an answer: a judge writes a few kilobytes
_HOPELESS = (401, 402, 403, 404)  # key, money, address or model: no other question would fare better

Bodies = Mapping[str, Mapping[str, Any]]  # what is sent, by key
Keep = Callable[[str, Reply], None]
Failed = Callable[[str, UnansweredError], None]


def ask_all(endpoint: Endpoint, bodies: Bodies, keep: Keep, failed: Failed) -> None:
    """Send the requests, `concurrency` at once; each ends in a call of `keep` or of `failed`, as answers come.

    Works inside a notebook's event loop too; Ctrl-C calls off what is on its way.

    Raises `EndpointError` where no other request would fare better, and whatever `keep` and `failed` raise: no further
    request is sent then, and what is on its way is kept.
    """
    with start_blocking_portal() as portal:
        portal.call(_ask_all, endpoint, iter(bodies.items()), keep, failed)


async def _ask_all(
    endpoint: Endpoint, questions: Iterator[tuple[str, Mapping[str, Any]]], keep: Keep, failed: Failed
) -> None:
    faults: list[Exception] = []

    async def work(client: openai.AsyncOpenAI) -> None:
        for key, body in questions:  # all workers draw from one iterator
            try:
                reply = await _ask(endpoint, client, body)
                keep(key, reply)
            except UnansweredError as error:
                failed(key, error)
            if faults:
                return

    async def noted(client: openai.AsyncOpenAI) -> None:
        try:
            await work(client)
        except Exception as error:  # what the others have sent is paid for: they wait for it, and send no more
            faults.append(error)

    async with _client(endpoint) as client, asyncio.TaskGroup() as group:
        for _ in range(endpoint.concurrency):
            group.create_task(noted(client))
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
    """Reads an answer within a total time and size, and follows no redirect: that would take texts and key along."""

    def __init__(self, timeout: float):
        super().__init__(follow_redirects=False, headers={"Accept-Encoding": "identity"})
        self._seconds = timeout

    async def send(self, request: httpx2.Request, **settings: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._seconds):
                answer = await super().send(request, **settings | {"stream": True})
                try:
                    content = await _content(answer)
                finally:
                    await answer.aclose()
        except TimeoutError:
            raise httpx2.ReadTimeout(f"no whole answer within {self._seconds:g} s", request=request) from None
        headers = [(name, value) for name, value in answer.headers.raw if name.lower() != b"content-encoding"]
        return httpx2.Response(answer.status_code, headers=headers, content=content, request=request)


async def _content(answer: httpx2.Response) -> bytes:
    content = bytearray()
    async for chunk in answer.aiter_bytes():
        content += chunk
        if len(content) > _MOST_BYTES:
            raise httpx2.ReadError(f"an answer of more than {_MOST_BYTES:,} bytes", request=answer.request)
    return bytes(content)


async def _ask(endpoint: Endpoint, client: openai.AsyncOpenAI, body: Mapping[str, Any]) -> Reply:
    """The reply to one request. Raises `UnansweredError` or `EndpointError`."""
    headers = {} if endpoint.key else {"Authorization": openai.Omit()}
    options: Any = {"headers": headers}
    try:
        answer = await client.post("/chat/completions", body=dict(body), options=options, cast_to=httpx2.Response)
    except openai.APIStatusError as error:
        raise _refused(endpoint, error) from None
    except openai.APIConnectionError as error:
        fault = error.__cause__ or error
        said = f"{type(fault).__name__} {fault}".rstrip()
        raise UnansweredError(f"no answer: {said}, after {endpoint.max_retries + 1} attempts") from None
    return read_reply(answer.content)


def _refused(endpoint: Endpoint, error: openai.APIStatusError) -> Exception:
    """What an HTTP status means for this question and for all others."""
    said = _message(error.response.content)
    if endpoint.key:
        said = said.replace(endpoint.key, "***")  # some servers repeat the key that they refuse
    status, fault = error.status_code, f"HTTP {error.status_code} {said}".rstrip()
    if status in (401, 403):
        hint = f"is the key in the environment variable {endpoint.key_variable} right?"
        return EndpointError(f"{endpoint.url}: {fault}; {hint if endpoint.key else f'set {endpoint.key_variable}'}")
    if status in _HOPELESS or status < 400 or "insufficient_quota" in said:
        return EndpointError(f"{endpoint.url}, model {endpoint.model!r}: {fault}; mend the address, model or account")
    if status in (408, 409, 429) or status >= 500:
        return UnansweredError(f"no answer: {fault}, after {endpoint.max_retries + 1} attempts")
    return UnansweredError(f"HTTP {status}: {said}", own=True)


def _message(raw: bytes) -> str:
    """What the server says of its fault, cut where it is long."""
    text = raw.decode(errors="replace").strip()
    try:
        error = plain(json.loads(text))["error"]
        text = f"{error['message']} {error.get('code') or ''}".strip() if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return shown(text) if text else ""
