"""The one record that everything learns from: who preferred which of two answers. No torch here."""

import difflib
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from prm.errors import DataError

logger = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant")
FIELDS = ("user_id", "prompt", "chosen", "rejected", "user_text", "p_chosen", "weight", "time")


class Message(NamedTuple):
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One person's judgement of two answers to one prompt.

    `p_chosen` is the probability, in [0, 1], that `chosen` is preferred; 0.5 is a tie. Answers given
    with less than 0.5 are swapped, so that it is at least 0.5 afterwards. `weight` is positive.
    `origin` says where the record came from ("log.jsonl, line 7") and takes no part in equality.

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
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the dataclass is frozen to everyone else
        require_text("user_id", self.user_id)
        set_field(self, "prompt", parse_prompt(self.prompt))
        set_field(self, "chosen", _parse_response("chosen", self.chosen))
        set_field(self, "rejected", _parse_response("rejected", self.rejected))
        if self.chosen == self.rejected:
            raise DataError("'chosen' and 'rejected' are the same text: there is nothing to compare")
        if self.user_text is None:
            set_field(self, "user_text", "")
        elif self.user_text != "":
            require_text("user_text", self.user_text)
        set_field(self, "p_chosen", _require_number("p_chosen", self.p_chosen))
        if not 0.0 <= self.p_chosen <= 1.0:
            raise DataError(f"'p_chosen' must lie in [0, 1], got {self.p_chosen}")
        set_field(self, "weight", _require_number("weight", self.weight))
        if self.weight <= 0.0:
            raise DataError(f"'weight' must be greater than 0, got {self.weight}")
        if isinstance(self.time, str):
            require_text("time", self.time)
        elif self.time is not None:
            _require_number("time", self.time)
        if self.p_chosen < 0.5:
            chosen, rejected = self.rejected, self.chosen
            set_field(self, "chosen", chosen)
            set_field(self, "rejected", rejected)
            set_field(self, "p_chosen", 1.0 - self.p_chosen)

    @property
    def is_tie(self) -> bool:
        """True where neither answer is preferred: such a label enters likelihoods only."""
        return self.p_chosen == 0.5

    def to_row(self) -> dict[str, Any]:
        """The record as a JSON-ready row, without fields that hold their default."""
        prompt = self.prompt if isinstance(self.prompt, str) else [m._asdict() for m in self.prompt]
        row: dict[str, Any] = {"user_id": self.user_id, "prompt": prompt}
        row |= {"chosen": self.chosen, "rejected": self.rejected}
        defaults: dict[str, Any] = {"user_text": "", "p_chosen": 1.0, "weight": 1.0, "time": None}
        row |= {k: getattr(self, k) for k, v in defaults.items() if getattr(self, k) != v}
        return row


def prompt_key(prompt: Prompt) -> str:
    """A string that two prompts share exactly when they are the same conversation."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:  # one user message reads like plain text
        return prompt[0].content
    return "\x01" + json.dumps(prompt, ensure_ascii=False)


def parse_prompt(value: Any) -> Prompt:
    """A prompt from JSON: a string, or messages that end with the user's turn.

    Raises `DataError` for empty text, an unknown role, or a conversation that ends with an answer.
    """
    if isinstance(value, str):
        require_text("prompt", value)
        return value
    messages = _parse_messages("prompt", value)
    if messages[-1].role != "user":
        raise DataError(f"'prompt' must end with a message of role 'user', not '{messages[-1].role}'")
    return messages


def read_jsonl(path: str | Path) -> list[Comparison]:
    """All comparisons of a JSON Lines file, in file order.

    Raises `DataError` at the first bad row, naming file, line and fault; nothing is skipped but
    lines of white space. Fields beyond `FIELDS` are ignored and named once in the log.
    """
    path = Path(path)
    comparisons: list[Comparison] = []
    unused: set[str] = set()
    for number, row in read_rows(path):
        origin = f"{path}, line {number}"
        missing = [name for name in FIELDS[:4] if name not in row]
        if missing:
            raise DataError(f"{origin}: field '{missing[0]}' is missing; a row has {', '.join(FIELDS[:4])}")
        for name in row.keys() - set(FIELDS) - unused:
            if (meant := difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.8)) and meant[0] not in row:
                raise DataError(f"{origin}: field '{name}' is not known; did you mean '{meant[0]}'?")
        unused |= row.keys() - set(FIELDS)
        given = {name: row[name] for name in FIELDS if name in row}
        try:
            comparisons.append(Comparison(**given, origin=origin))
        except DataError as error:
            raise DataError(f"{origin}: {error}") from None
    if unused:
        logger.warning("%s: fields that are not read: %s", path, ", ".join(sorted(unused)))
    return comparisons


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a JSON Lines file.

    Raises `DataError` as `read_values` does, and for lines that hold no object.
    """
    for number, row in read_values(path):
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, got {_kind(row)}")
        yield number, row


def read_values(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line number, JSON value) of each line; lines of white space are passed over.

    Raises `DataError` for a missing or empty file, bad UTF-8 and broken JSON, naming file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    empty = True
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            origin = f"{path}, line {number}"
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{origin}: not UTF-8 text (byte {error.start} of the line)") from None
            if not text:
                continue
            empty = False
            try:
                row = json.loads(text, parse_constant=_refuse_constant)
            except RecursionError:
                raise DataError(f"{origin}: nested too deeply to be a row of feedback") from None
            except ValueError as error:
                cut = "" if raw.endswith(b"\n") else "; the file ends here, so the line may be cut short"
                raise DataError(f"{origin}: not valid JSON: {error}{cut}") from None
            yield number, row
    if empty:
        raise DataError(f"{path}: the file is empty")


def write_jsonl(path: str | Path, rows: Iterable[Comparison | dict[str, Any]]) -> None:
    """Write rows as JSON Lines through a temporary file, so that a kill leaves the old file or the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            plain = row.to_row() if isinstance(row, Comparison) else row
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")
    temporary.replace(path)


def fingerprint(comparisons: Iterable[Comparison]) -> str:
    """Hex digest of the records in their order; equal data give equal digests whatever the file's layout."""
    digest = hashlib.sha256()
    for comparison in comparisons:
        digest.update(json.dumps(comparison.to_row(), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _parse_response(name: str, value: Any) -> str:
    if not isinstance(value, list | tuple):
        require_text(name, value)
        return value
    messages = _parse_messages(name, value)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise DataError(f"'{name}' must be text or a single message of role 'assistant'")
    return messages[0].content


def _parse_messages(name: str, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple):
        raise DataError(f"'{name}' must be text or a list of messages, got {_kind(value)}")
    if not value:
        raise DataError(f"'{name}' is an empty list")
    messages = []
    for i, message in enumerate(value):
        if isinstance(message, Message):
            message = message._asdict()
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"'{name}[{i}]' must be an object with 'role' and 'content'")
        if message["role"] not in ROLES:
            raise DataError(f"'{name}[{i}]' has the unknown role {message['role']!r}; known: {', '.join(ROLES)}")
        require_text(f"{name}[{i}].content", message["content"])
        messages.append(Message(message["role"], message["content"]))
    return tuple(messages)


def require_text(name: str, value: Any) -> None:
    """Raise `DataError` naming the field unless the value is text that is not blank."""
    if not isinstance(value, str):
        hint = "; put the id in quotes" if name == "user_id" and isinstance(value, int) else ""
        raise DataError(f"'{name}' must be text, got {_kind(value)}{hint}")
    if not value.strip():
        raise DataError(f"'{name}' is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"'{name}' holds half of a surrogate pair, which is not text") from None


def _require_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"'{name}' must be a number, got {_kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise DataError(f"'{name}' is too large") from None
    if not math.isfinite(number):
        raise DataError(f"'{name}' must be a finite number, got {value}")
    return number


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: Any) -> str:
    names = {str: "text", dict: "an object", list: "a list", bool: "true/false", type(None): "null"}
    return names.get(type(value), f"{type(value).__name__} {value}")
