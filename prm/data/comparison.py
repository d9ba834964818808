"""The record that everything is trained on: which of two responses a user prefers. Does not import torch."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from numbers import Integral, Real
from typing import NamedTuple, TypeVar

from prm.errors import DataError, counted, meant, shown
from prm.io.tables import kind

T = TypeVar("T")

ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
PromptLike = Prompt | list[Message] | list[dict[str, str]]  # as callers pass it: see `parse_prompt`


@dataclass(frozen=True, slots=True)
class Comparison:
    """One user's comparison of two responses to one prompt.

    Args:
        user_text: the user's text, or "".
        p_chosen: probability, in [0, 1], that `chosen` is preferred; 0.5 is a tie. Below 0.5, the responses are
            swapped, so that it is at least 0.5 afterwards.
        weight: positive.
        time: ISO 8601 text, a number, or a date or datetime, which becomes text.
        chosen_first: whether the chosen response was shown first, if known.
        metadata: further values to keep, JSON-ready.
        conversation_id: the conversation that the prompt is a turn of, for splits; two ids, one per line, if the
            responses come from two conversations.
        origin: where the record comes from ("log.jsonl, line 7"); ignored by equality.

    Raises `DataError` naming the field and the fault.
    """

    user_id: str
    prompt: Prompt
    chosen: str
    rejected: str
    user_text: str = ""
    p_chosen: float = 1.0
    weight: float = 1.0
    time: str | float | None = None
    chosen_first: bool | None = None
    metadata: Mapping[str, object] = field(default_factory=dict, hash=False)
    conversation_id: str | None = None
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen
        for name in _SINGLE:
            if type(value := getattr(self, name)).__module__ == "numpy":
                set_field(self, name, value.tolist())
        require_text("user_id", self.user_id)
        set_field(self, "prompt", parse_prompt(self.prompt))
        set_field(self, "chosen", parse_response("chosen", self.chosen))
        set_field(self, "rejected", parse_response("rejected", self.rejected))
        if self.chosen == self.rejected:
            raise DataError("'chosen' and 'rejected' are the same text: there is nothing to compare")
        if self.user_text is None:
            set_field(self, "user_text", "")
        elif self.user_text != "":
            require_text("user_text", self.user_text)
        set_field(self, "p_chosen", require_number("p_chosen", self.p_chosen))
        if not 0.0 <= self.p_chosen <= 1.0:
            raise DataError(f"'p_chosen' must lie in [0, 1], got {self.p_chosen}")
        set_field(self, "weight", require_number("weight", self.weight))
        if self.weight <= 0.0:
            raise DataError(f"'weight' must be greater than 0, got {self.weight}")
        if isinstance(self.time, date) and self.time == self.time:  # also a datetime; NaT is unequal to itself
            set_field(self, "time", self.time.isoformat())
        if isinstance(self.time, str):
            moment_of(self.time)
        elif self.time is not None:
            require_number("time", self.time)
        if not isinstance(self.chosen_first, bool | None):
            raise DataError(f"'chosen_first' must be true or false, got {kind(self.chosen_first)}")
        if self.conversation_id is not None:
            require_text("conversation_id", self.conversation_id)
        if not isinstance(self.metadata, Mapping):
            raise DataError(f"'metadata' must be an object, got {kind(self.metadata)}")
        if self.p_chosen < 0.5:
            chosen, rejected = self.rejected, self.chosen
            set_field(self, "chosen", chosen)
            set_field(self, "rejected", rejected)
            set_field(self, "p_chosen", 1.0 - self.p_chosen)
            if self.chosen_first is not None:
                set_field(self, "chosen_first", not self.chosen_first)

    @property
    def is_tie(self) -> bool:
        """True if neither response is preferred; ties count in log losses only."""
        return self.p_chosen == 0.5

    def to_row(self) -> dict[str, object]:
        """The record as a JSON-ready row, without fields at their default."""
        prompt = self.prompt if isinstance(self.prompt, str) else [m._asdict() for m in self.prompt]
        row: dict[str, object] = {"user_id": self.user_id, "prompt": prompt}
        row |= {"chosen": self.chosen, "rejected": self.rejected}
        row |= {k: getattr(self, k) for k, v in _DEFAULTS.items() if getattr(self, k) != v}
        return row


_SINGLE = ("user_id", "prompt", "chosen", "rejected", "user_text", "p_chosen", "weight", "time", "chosen_first")
_DEFAULTS: dict[str, object] = {
    "user_text": "",
    "p_chosen": 1.0,
    "weight": 1.0,
    "time": None,
    "chosen_first": None,
    "metadata": {},
    "conversation_id": None,
}


class Extent(NamedTuple):
    """Numbers of comparisons, of prompts and of users."""

    comparisons: int
    prompts: int
    people: int

    def __str__(self) -> str:
        size = counted(self.comparisons, "comparison"), counted(self.prompts, "prompt")
        return f"{size[0]} of {size[1]} by {counted(self.people, 'user')}"


def extent(comparisons: Sequence[Comparison]) -> Extent:
    """Counts of comparisons (with ties), prompts and users."""
    prompts = {prompt_key(prompt) for prompt in {c.prompt for c in comparisons}}
    return Extent(len(comparisons), len(prompts), len({c.user_id for c in comparisons}))


def latest_user_texts(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The last comparison with a `user_text` of each user who has one, in the order of the log."""
    return list({c.user_id: c for c in comparisons if c.user_text}.values())


def prompt_key(prompt: Prompt) -> str:
    """A string that is equal for two prompts if and only if they are the same conversation."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:  # one user message is the same as plain text
        return prompt[0].content
    return "\x01" + json.dumps(prompt, ensure_ascii=False)


def as_messages(prompt: Prompt) -> list[Message]:
    """The prompt as messages; plain text becomes one user message."""
    return [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)


def parse_prompt(value: object, name: str = "prompt") -> Prompt:
    """A prompt from JSON: a string, or messages that end with the user's turn.

    Raises `DataError` naming the field for empty text, an unknown role, or a conversation that does not end with a user
    message.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):  # pandas reads messages in Parquet as arrays
        value = value.tolist()
    if isinstance(value, str):
        return require_text(name, value)
    messages = parse_messages(name, value)
    if messages[-1].role != "user":
        raise DataError(f"'{name}' must end with a message of role 'user', not '{messages[-1].role}'")
    return messages


def fingerprint(comparisons: Iterable[Comparison]) -> str:
    """Hex digest of the records in order; it does not depend on the file's format."""
    digest = hashlib.sha256()
    for comparison in comparisons:
        digest.update(json.dumps(comparison.to_row(), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def parse_response(name: str, value: object) -> str:
    """A response from JSON: a string, or a list of one message. Raises `DataError` naming the field."""
    if not isinstance(value, list | tuple):
        return require_text(name, value)
    messages = parse_messages(name, value)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise DataError(f"'{name}' must be text or a single message of role 'assistant'")
    return messages[0].content


def parse_messages(name: str, value: object) -> tuple[Message, ...]:
    """Messages from JSON. Raises `DataError` naming the field for an unknown role or empty text."""
    if not isinstance(value, list | tuple):
        raise DataError(f"'{name}' must be text or a list of messages, got {kind(value)}")
    if not value:
        raise DataError(f"'{name}' is an empty list")
    messages = []
    for i, message in enumerate(value):
        if isinstance(message, Message):
            message = message._asdict()
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"'{name}[{i}]' must be an object with 'role' and 'content'")
        if message["role"] not in ROLES:
            role = message["role"]
            near = meant(str(role), ROLES) or f"; known: {', '.join(ROLES)}"
            raise DataError(f"'{name}[{i}]' has the unknown role {shown(role)}{near}")
        content = require_text(f"{name}[{i}].content", message["content"])
        messages.append(Message(message["role"], content))
    return tuple(messages)


def moment_of(time: str) -> datetime:
    """Parse ISO 8601 text. Raises `DataError` for other text."""
    require_text("time", time)
    try:
        return datetime.fromisoformat(time)
    except ValueError:
        raise DataError(f"'time' must be an ISO 8601 date, such as 2026-03-01, or a number, got {time!r}") from None


@contextmanager
def naming_rows(rows: Iterable[tuple[str, T]], check: Callable[[T], object]) -> Iterator[None]:
    """Prefix a `DataError` from the block with the origin of the first row that `check` refuses.

    Rows are checked one by one only after an error, because the block handles them faster together.

    Args:
        rows: (origin, row) pairs.
    """
    try:
        yield
    except DataError:
        for origin, row in rows:
            try:
                check(row)
            except DataError as error:
                raise DataError(f"{origin}: {error}") from None
        raise


def placed(comparisons: Iterable[Comparison]) -> Iterator[tuple[str, Comparison]]:
    """(origin, comparison) pairs; a comparison without an origin gets its position in the list."""
    return ((c.origin or f"comparisons[{i}]", c) for i, c in enumerate(comparisons))


def require_text(name: str, value: object) -> str:
    """The value. Raises `DataError` naming the field unless it is non-blank text that UTF-8 can encode."""
    if not isinstance(value, str):
        advice = id_advice(value) if name == "user_id" else ""
        raise DataError(f"'{name}' must be text, got {kind(value)}{advice}")
    if not value.strip():
        raise DataError(f"'{name}' is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"'{name}' holds a lone surrogate, which is not text") from None
    return value


def as_id(name: str, value: object) -> str:
    """An id as text; whole numbers are converted. Raises `DataError` for a value that is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        raise DataError(f"'{name}' is the number {value}; ids are text or whole numbers{id_advice(value)}")
    return require_text(name, value)


def id_advice(value: object) -> str:
    """End of a message about an id that is a whole number: what to do about it; "" for another value."""
    if isinstance(value, bool):
        return ""
    if isinstance(value, Integral):
        return f"; put the id in quotes, '{value}'"
    if isinstance(value, Real) and float(value).is_integer():
        return "; pandas makes whole numbers floats where some are missing: .astype('Int64') keeps them whole"
    return ""


def require_number(name: str, value: object) -> float:
    """The value as a float. Raises `DataError` naming the field unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"'{name}' must be a number, got {kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise DataError(f"'{name}' is too large") from None
    if not math.isfinite(number):
        raise DataError(f"'{name}' must be a finite number, got {value}")
    return number
