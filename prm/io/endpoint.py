"""Settings of a chat-completions endpoint, its replies, and the errors for one request and for all of them."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from prm.errors import PrmError, shown
from prm.io.tables import plain


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint and the settings of its requests.

    Args:
        url: base URL without `/chat/completions`: `https://api.openai.com/v1`, `http://localhost:8000/v1`.
        model: the model's name at the endpoint. A generator may leave it out if the server has a single model.
        key_variable: environment variable with the API key; a local server may need none. The key goes into the
            request's header and nowhere else.
        options: further fields of every request. A judge sends temperature 0 and 512 `max_tokens` if there are none;
            a generator lays them over its sampling settings, and leaves out a field whose value is `None`. Some models
            need `max_completion_tokens`.
        timeout: seconds until a request is given up, even if its response is still arriving.
        max_retries: of a failed request; the client waits longer each time, or as long as the server asks for.
        concurrency: number of requests in flight.
        price_in, price_out: per million tokens of request and reply, in any currency; 0 if it is free.

    Raises `PrmError` for an invalid address or setting.
    """

    url: str
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    options: Mapping[str, object] | None = None
    timeout: float = 60.0
    max_retries: int = 4
    concurrency: int = 8
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise PrmError(f"an endpoint's url starts with http:// or https:// and a host, got {self.url!r}")
        if "@" in urlsplit(self.url).netloc:  # messages and logs name the url
            raise PrmError("an endpoint's url holds no user name or password: put the key into the key_variable")
        if self.max_retries < 0 or self.concurrency < 1 or not 0 < self.timeout < math.inf:
            raise PrmError("an endpoint needs max_retries of 0 or more, concurrency of 1 or more and a timeout above 0")
        if any(price is not None and not 0 <= price < math.inf for price in (self.price_in, self.price_out)):
            raise PrmError("an endpoint's prices are numbers of 0 or more")
        try:
            json.dumps(dict(self.options or {}), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise PrmError(f"an endpoint's options must be what JSON can hold: {error}") from None

    @property
    def key(self) -> str:
        """The API key, or "". Raises `EndpointError` if a header cannot hold it."""
        key = os.environ.get(self.key_variable, "").strip()
        if not key.isascii() or len(key.split()) > 1:
            raise EndpointError(
                f"the environment variable {self.key_variable} holds no key: it has blanks or non-ASCII letters"
            )
        return key


class Reply(NamedTuple):
    """A choice of a completion: its text, finish reason and refusal.

    The tokens are those that the server counted for the whole completion (0 if it did not).
    """

    text: str
    finish: str = ""
    refusal: str = ""
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether the model ended without a word."""
        return not self.text.strip() and not self.refusal and self.finish in ("", "stop")


class UnansweredError(Exception):
    """This request failed; others may succeed. The part of the message before the first colon is the kind of reason.

    `own` is true if the fault lies with the request, such as a prompt that is too long.
    """

    def __init__(self, reason: str, own: bool = False):
        super().__init__(reason)
        self.own = own


class UnreadableError(UnansweredError):
    """The server's reply is no completion."""


class EndpointError(PrmError):
    """Every request to this endpoint fails; the message says what to do."""


class StatusError(PrmError):
    """A request to an endpoint failed.

    Args:
        status: HTTP status; 504 if no answer came in time, 502 if none came at all or it cannot be read.
        retry_after: seconds that the endpoint asks to wait, if it does.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


def is_url(name: str) -> bool:
    """Whether a model's name is the URL of an endpoint."""
    return name.startswith(("http://", "https://"))


def read_replies(raw: bytes) -> list[Reply]:
    """Parse the choices of a completion, at least one, into text that any file can hold.

    Raises `UnreadableError` for anything else.
    """
    try:
        completion = plain(json.loads(raw))  # NaN and infinity become None, half surrogate pairs "?"
        usage = completion.get("usage") or {}
        counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        replies = [_reply(choice, *counts) for choice in completion["choices"]]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise UnreadableError(f"no answer: not a completion: {shown(raw.decode(errors='replace'))}") from None
    if not replies:
        raise UnreadableError("no answer: a completion without a choice")
    return replies


def _reply(choice: Mapping[str, Mapping[str, object]], tokens_in: int, tokens_out: int) -> Reply:
    message = choice["message"]
    text, refusal = message.get("content") or "", message.get("refusal") or ""
    if not isinstance(text, str) or not isinstance(refusal, str):
        raise UnreadableError("no answer: the content of the completion is not text")
    return Reply(text, str(choice.get("finish_reason") or ""), refusal, tokens_in, tokens_out)


def _count(value: object) -> int:
    """A token count of the server; 0 for anything else."""
    return value if isinstance(value, int) and value >= 0 else 0


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an unclosed bracket, an invalid port
        return False
