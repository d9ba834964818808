"""Where a language model answers: how it is asked, what it replies, and the two ways to get no reply."""

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
    """An OpenAI-compatible endpoint, and how it is asked.

    Args:
        url: what `/chat/completions` is put behind, as `https://api.openai.com/v1` or `http://localhost:8000/v1`.
        model: its name there.
        key_variable: environment variable with the API key; a server of one's own may need none. The key goes into
            the request's header and nowhere else.
        options: further fields of every request. Most models take these; some want `max_completion_tokens`.
        timeout: seconds until a request is given up, even where its answer is still trickling in.
        max_retries: of a request that failed; the client waits longer each time, or as long as the server asks for.
        concurrency: questions on the way at once.
        price_in, price_out: per million tokens of question and answer, in any currency; 0 where it costs nothing.

    Raises `PrmError` for an address that is none and settings that make no sense.
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
        """The API key, or "". Raises `EndpointError` for what no header can hold."""
        key = os.environ.get(self.key_variable, "").strip()
        if not key.isascii() or len(key.split()) > 1:
            raise EndpointError(
                f"the environment variable {self.key_variable} holds no key: blanks, or letters beyond ASCII"
            )
        return key


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


def read_reply(raw: bytes) -> Reply:
    """The first choice of a completion, as text that any file can hold. Raises `UnansweredError` for what is none."""
    try:
        answer = plain(json.loads(raw))  # odd numbers become None, half surrogate pairs "?"
        choice = answer["choices"][0]
        message, usage = choice["message"], answer.get("usage") or {}
        text, refusal = message.get("content") or "", message.get("refusal") or ""
        counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        finish = str(choice.get("finish_reason") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise UnansweredError(f"no answer: not a completion: {shown(raw.decode(errors='replace'))}") from None
    if not isinstance(text, str) or not isinstance(refusal, str):
        raise UnansweredError("no answer: a completion whose content is no text")
    if not text.strip() and not refusal and finish in ("", "stop"):
        raise UnansweredError("no answer: an empty completion")
    return Reply(text, finish, refusal, *counts)


def _count(value: Any) -> int:
    """Tokens that a server says it counted; 0 for anything else."""
    return value if isinstance(value, int) and value >= 0 else 0


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket without its other half, a port that is none
        return False
