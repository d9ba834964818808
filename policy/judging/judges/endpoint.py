"""Settings of a chat-completions endpoint, its replies, and the errors for one request and for all of them."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from prm.errors import PrmError, shown
from prm.io.tables import plain


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint and the settings of its requests.

    Args:
        url: base URL without `/chat/completions`: `https://api.openai.com/v1`, `http://localhost:8000/v1`.
        model: the model's name at the endpoint.
        key_variable: environment variable with the API key; a local server may need none. The key goes into the
            request's header and nowhere else.
        options: further fields of every request. Most models take the defaults; some need `max_completion_tokens`.
        timeout: seconds until a request is given up, even if its response is still arriving.
        max_retries: of a failed request; the client waits longer each time, or as long as the server asks for.
        concurrency: number of requests in flight.
        price_in, price_out: per million tokens of request and reply, in any currency; 0 if it is free.

    Raises `PrmError` for an invalid address or setting.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 512})
    timeout: float = 60.0
    max_retries: int = 4
    concurrency: int = 8
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise PrmError(f"an endpoint's url starts with http:// or https:// and a host, got {self.url!r}")
        if self.max_retries < 0 or self.concurrency < 1 or not 0 < self.timeout < math.inf:
            raise PrmError("an endpoint needs max_retries of 0 or more, concurrency of 1 or more and a timeout above 0")
        if any(price is not None and not 0 <= price < math.inf for price in (self.price_in, self.price_out)):
            raise PrmError("an endpoint's prices are numbers of 0 or more")
        try:
            json.dumps(dict(self.options), allow_nan=False)
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
    """A completion: its text, finish reason, refusal, and the tokens that the server counted (0 if it did not)."""

    text: str
    finish: str = ""
    refusal: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


class UnansweredError(Exception):
    """This request failed; others may succeed. The part of the message before the first colon is the kind of reason.

    `own` is true if the fault lies with the request, such as a prompt that is too long.
    """

    def __init__(self, reason: str, own: bool = False):
        super().__init__(reason)
        self.own = own


class EndpointError(PrmError):
    """Every request to this endpoint fails; the message says what to do."""


def read_reply(raw: bytes) -> Reply:
    """Parse the first choice of a completion into text that any file can hold. Raises `UnansweredError` otherwise."""
    try:
        completion = plain(json.loads(raw))  # NaN and infinity become None, half surrogate pairs "?"
        choice = completion["choices"][0]
        message, usage = choice["message"], completion.get("usage") or {}
        text, refusal = message.get("content") or "", message.get("refusal") or ""
        counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        finish = str(choice.get("finish_reason") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise UnansweredError(f"no answer: not a completion: {shown(raw.decode(errors='replace'))}") from None
    if not isinstance(text, str) or not isinstance(refusal, str):
        raise UnansweredError("no answer: the content of the completion is not text")
    if not text.strip() and not refusal and finish in ("", "stop"):
        raise UnansweredError("no answer: an empty completion")
    return Reply(text, finish, refusal, *counts)


def _count(value: Any) -> int:
    """A token count of the server; 0 for anything else."""
    return value if isinstance(value, int) and value >= 0 else 0


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an unclosed bracket, an invalid port
        return False
