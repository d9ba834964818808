"""What samples responses: one interface for our sampler, an endpoint and a function. Imports no torch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from prm.data.arguments import require_list
from prm.data.comparison import Prompt, as_messages
from prm.errors import PrmError
from prm.io.tables import kind


class Response(NamedTuple):
    """A response; `ended` is false if it was cut at its maximum length, `None` if that is not known."""

    text: str
    ended: bool | None = None


@dataclass(frozen=True)
class Request:
    """A prompt and its user, with the responses if they are given.

    Args:
        user: id; `None` is the generic user.
        user_text: the user's text about themselves, or "".
        row: the JSON object that it was read from.
        location: where that is ("requests.jsonl, line 7").
    """

    prompt: Prompt
    user: str | None = None
    user_text: str = ""
    responses: tuple[Response, ...] | None = None
    row: Mapping[str, object] = field(default_factory=dict)
    location: str = ""


Drawn = list[Response] | PrmError  # the responses to a request, or why there are none


class Generator(Protocol):
    """Samples responses to requests."""

    @property
    def knows_users(self) -> bool:
        """Whether the responses depend on the user."""
        ...

    def check(self, request: Request) -> None:
        """Raise `DataError`, starting with the request's location, if it is known that the request does not fit."""
        ...

    def sample(self, requests: Iterable[Request], n: int) -> Iterator[Drawn]:
        """Yield n responses to each request, in order; some may be empty, some equal.

        Raises `PrmError` if all further requests would fail too.
        """
        ...


def require_responses(drawn: Drawn) -> list[Response]:
    """The responses. Raises the error that stands for them."""
    if isinstance(drawn, PrmError):
        raise drawn
    return drawn


PlainPrompt = str | list[dict[str, str]]
GeneratingFunction = Callable[[PlainPrompt, int, str | None], list[str]]


class FunctionGenerator:
    """Calls a function with prompt, n and user id; it returns the texts of n responses.

    A prompt is text, or a list of messages with `role` and `content`.
    """

    knows_users = True

    def __init__(self, function: GeneratingFunction):
        self._function = function

    def check(self, request: Request) -> None:
        """Do nothing: the function knows what it takes."""

    def sample(self, requests: Iterable[Request], n: int) -> Iterator[Drawn]:
        """Yield what the function returns. Raises `PrmError` if that is no list of texts."""
        for request in requests:
            texts = require_list("generator(...)", self._function(_as_plain(request.prompt), n, request.user))
            if wrong := [text for text in texts if not isinstance(text, str)]:
                raise PrmError(f"the generator must return a list of texts, got one with {kind(wrong[0])}")
            yield [Response(text.strip()) for text in texts]


def _as_plain(prompt: Prompt) -> PlainPrompt:
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.role, "content": message.content} for message in as_messages(prompt)]
