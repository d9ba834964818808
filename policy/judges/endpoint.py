"""One question to an OpenAI-compatible endpoint: what to try again, what to give up, what to stop at."""

import json
import os
import random
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

from prm.errors import PrmError
from prm.files import shown

_MOST_BYTES = 10_000_000  # of an answer: a judge writes a few kilobytes
_LONGEST_PAUSE = 120.0  # seconds, whatever the server asks for
_AGAIN = (408, 409, 425, 429)  # and everything from 500 on
_HOPELESS = (401, 402, 403, 404)  # key, money, address or model: no other question would fare better


@dataclass(frozen=True)
class Endpoint:
    """Where a language model answers, and how it is asked.

    Args:
        url: what `/chat/completions` is put behind, as `https://api.openai.com/v1` or `http://localhost:8000/v1`.
        model: its name there.
        key_variable: environment variable with the API key; a server of one's own may need none. The key goes into
            the request's header and nowhere else.
        options: further fields of every request. Most models take these; some want `max_completion_tokens`.
        timeout: seconds without a sign of life before an attempt is given up.
        attempts: of one question; between them the pause, in seconds, doubles, or is what the server asks for.
        concurrency: questions on the way at once.
        price_in, price_out: per million tokens of question and answer, in any currency; 0 where it costs nothing.

    Raises `PrmError` for an address that is none and settings that make no sense.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 512})
    timeout: float = 60.0
    attempts: int = 5
    pause: float = 1.0
    concurrency: int = 8
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise PrmError(f"an endpoint's url starts with http:// or https:// and a host, got {self.url!r}")
        if self.attempts < 1 or self.concurrency < 1 or self.timeout <= 0 or self.pause < 0:
            raise PrmError("an endpoint needs attempts and concurrency of 1 or more, a timeout above 0, a pause from 0")

    @property
    def key(self) -> str:
        """The API key, or ""."""
        return os.environ.get(self.key_variable, "").strip()


class Reply(NamedTuple):
    """What came back: the text, why it ended, a refusal in words, and the tokens that were counted (0 if not)."""

    text: str
    finish: str = ""
    refusal: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


class UnansweredError(Exception):
    """This question got no answer; others may. The message says why, up to a colon in general terms.

    `own` is true where the fault lies with the question: too long a prompt, say.
    """

    def __init__(self, reason: str, own: bool = False):
        super().__init__(reason)
        self.own = own


class EndpointError(PrmError):
    """No question will get an answer here; the message says what to do."""


class _TryAgainError(Exception):
    """A fault that may pass; `wait` is what the server asks for, in seconds."""

    def __init__(self, fault: str, wait: float = 0.0):
        super().__init__(fault)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would take the key along to wherever it is sent."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def ask(endpoint: Endpoint, body: Mapping[str, Any], stop: threading.Event) -> Reply:
    """The reply to one request, after as many attempts as it takes; once `stop` is set, nothing more is sent.

    Raises `UnansweredError`, or `EndpointError` where no other request would fare better; that sets `stop`.
    """
    fault = "stopped"
    for attempt in range(endpoint.attempts):
        if stop.is_set():
            break
        try:
            return _post(endpoint, body)
        except EndpointError:
            stop.set()
            raise
        except _TryAgainError as error:
            fault = str(error)
            if attempt + 1 < endpoint.attempts:
                doubled = endpoint.pause * 2.0**attempt * random.uniform(1.0, 1.5)  # so that not all come at once
                stop.wait(min(max(doubled, error.wait), _LONGEST_PAUSE))
    raise UnansweredError(f"no answer: {fault}, after {endpoint.attempts} attempts")


def _post(endpoint: Endpoint, body: Mapping[str, Any]) -> Reply:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if endpoint.key:
        if not endpoint.key.isascii() or len(endpoint.key.split()) > 1:
            raise EndpointError(
                f"the environment variable {endpoint.key_variable} holds no key: blanks, or letters beyond ASCII"
            )
        headers["Authorization"] = f"Bearer {endpoint.key}"
    address = f"{endpoint.url.rstrip('/')}/chat/completions"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with _OPENER.open(request, timeout=endpoint.timeout) as answer:
            raw = answer.read(_MOST_BYTES)
    except HTTPError as error:
        raise _http_fault(endpoint, error) from None
    except (OSError, HTTPException) as error:  # refused, reset, timed out, cut short
        raise _TryAgainError(f"{type(error).__name__} {error}") from None
    return _read(raw)


def _http_fault(endpoint: Endpoint, error: HTTPError) -> Exception:
    """What an HTTP status means for this question and for all others."""
    said = _message(error)
    if endpoint.key:
        said = said.replace(endpoint.key, "***")  # some servers repeat the key that they refuse
    fault = f"HTTP {error.code} {said}".rstrip()
    if error.code in (401, 403):
        hint = f"is the key in the environment variable {endpoint.key_variable} right?"
        return EndpointError(f"{endpoint.url}: {fault}; {hint if endpoint.key else f'set {endpoint.key_variable}'}")
    if error.code in _HOPELESS or error.code < 400 or "insufficient_quota" in said:
        return EndpointError(f"{endpoint.url}, model {endpoint.model!r}: {fault}; mend the address, model or account")
    if error.code in _AGAIN or error.code >= 500:
        return _TryAgainError(fault, _seconds(error.headers.get("Retry-After")))
    return UnansweredError(f"HTTP {error.code}: {said}", own=True)


def _message(error: HTTPError) -> str:
    """What the server says of its fault, cut where it is long."""
    try:
        raw = error.read(_MOST_BYTES).decode(errors="replace").strip()
    except (OSError, HTTPException):
        return ""
    try:
        told = json.loads(raw)["error"]
        raw = f"{told['message']} {told.get('code') or ''}".strip() if isinstance(told, dict) else str(told)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return shown(raw) if raw else ""


def _seconds(retry_after: str | None) -> float:
    """Seconds that the server asks to wait; 0 where it names a date or nothing."""
    try:
        return max(0.0, float(retry_after or 0.0))
    except ValueError:
        return 0.0


def _read(raw: bytes) -> Reply:
    """The first choice of a completion. Raises `_TryAgainError` for what is none."""
    try:
        answer = json.loads(raw)
        choice = answer["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content") or "", message.get("refusal") or ""
        usage = answer.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _TryAgainError(f"not a completion {shown(raw.decode(errors='replace'))}") from None
    if not isinstance(text, str):
        raise _TryAgainError("a completion whose content is no text")
    finish = str(choice.get("finish_reason") or "")
    if not text.strip() and not refusal and finish in ("", "stop"):
        raise _TryAgainError("an empty completion")
    return Reply(text, finish, str(refusal), *counts)
