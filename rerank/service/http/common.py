"""What all endpoints share: limits of texts, the caller's namespace, and errors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from prm.data.comparison import Prompt, parse_prompt
from prm.errors import DataError
from rerank.service.engine import Engine
from rerank.service.errors import UnreadableError

_ID = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"  # no control character, not blank
Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=_ID)]
Text = Annotated[str, StringConstraints(min_length=1)]
MOST_REWARD = 1e6  # of what a request gives as a reward or a rating, either way: differences stay exact enough


class Body(BaseModel):
    """The body of a request; unknown fields are refused, and so is text for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class OpenBody(BaseModel):
    """The body of a request in another product's shape; fields that mean nothing here are left unread."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Annotated[Text, Field(description="system, developer, user or assistant", examples=["user"])]
    content: Annotated[Text, Field(description="text", examples=["How do I keep bread fresh?"])]


_PROMPT = Field(
    description="text, or messages that end with the user's; too long a one is read from a later place on",
    examples=["How do I keep bread fresh?"],
)
PromptBody = Annotated[str | list[Message], _PROMPT]
MaybePrompt = Annotated[str | list[Message] | None, _PROMPT]
User = Annotated[Id, Field(description="id of the user", examples=["anna"])]
MaybeUser = Annotated[
    Id | None, Field(description="id of the user whose preference counts; without it everybody's", examples=["anna"])
]
UserText = Annotated[
    str,
    Field(
        description="the user's text about themselves, for a run that was trained with such texts",
        examples=["I bake on Sundays."],
    ),
]


async def engine_of(request: Request) -> Engine:
    """The engine of the application."""
    return request.app.state.engine


async def namespace_of(request: Request) -> str:
    """The namespace of the caller's key."""
    return request.state.namespace


UseEngine = Annotated[Engine, Depends(engine_of)]
UseNamespace = Annotated[str, Depends(namespace_of)]


def prompt_of(engine: Engine, body: str | list[Message], name: str = "prompt") -> Prompt:
    """A prompt for the engine. Raises `DataError` for one that is empty, too long or no conversation."""
    prompt = parse_prompt(body if isinstance(body, str) else [m.model_dump() for m in body], name)
    texts = [prompt] if isinstance(prompt, str) else [text for m in prompt for text in m]
    check_length(engine, name, *texts)
    return prompt


def check_length(engine: Engine, name: str, *texts: str) -> None:
    """Raise `DataError` for texts that are too long together, before they are tokenised."""
    if (length := sum(map(len, texts))) > (most := engine.config.max_characters):
        raise DataError(f"'{name}' has {length:,} characters; the service takes {most:,}")


def check_texts(engine: Engine, name: str, texts: list[str]) -> list[str]:
    """The texts. Raises `DataError` for too many or too long ones."""
    if len(texts) > (most := engine.config.max_responses):
        raise DataError(f"'{name}' has {len(texts):,} texts; the service takes {most:,} in one request")
    for i, text in enumerate(texts):
        check_length(engine, f"{name}[{i}]", text)
    return texts


@contextmanager
def naming(name_of: Callable[[int], str]) -> Iterator[None]:
    """Name the text that the model cannot read, by its position, in the error of the block."""
    try:
        yield
    except UnreadableError as error:
        raise DataError(f"'{name_of(error.position)}': {error}") from None


def fault(status: int, message: str, **headers: str) -> HTTPException:
    """An error that the caller sees."""
    return HTTPException(status, message, headers or None)


class ErrorDetail(BaseModel):
    """What is wrong, its kind, and the HTTP status."""

    message: str
    type: str
    code: int


class ErrorReply(BaseModel):
    """The body of every error, in OpenAI's shape."""

    error: ErrorDetail


_MEANINGS = {
    400: "The request cannot be taken: `message` says why.",
    401: "An API key is missing, or is not known.",
    403: "The page of another site asked.",
    404: "There is no such user, or nothing of that id.",
    405: "The path has no such method.",
    408: "The request did not come in time.",
    409: "The idempotency key was used for something else, or the user picked another response of what was shown.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    422: "A field is missing or wrong: `message` says which.",
    431: "Path and headers are too large.",
    429: "The key asks too often: see the header Retry-After.",
    500: "The service failed.",
    503: "The service is busy, or its database does not answer: see the header Retry-After.",
}
ERRORS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorReply, "description": meaning} for status, meaning in _MEANINGS.items()
}


def described(status: int, message: str) -> dict[str, dict[str, str | int]]:
    """The body of every error, in OpenAI's shape."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": status}}
