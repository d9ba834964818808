"""OpenAI's preference fine-tuning files, which Fireworks, Together and others take too."""

from collections.abc import Collection

from prm.data.sources.formats.arena import prompt_of
from prm.data.sources.formats.judgement import Judgement, judged
from prm.data.sources.messages import read_messages
from prm.errors import DataError
from prm.io.rows import Row

TITLE = "OpenAI preference fine-tuning"
SAYS = "prompt from input.messages, chosen from preferred_output, rejected from non_preferred_output"
READS = {"input", "preferred_output", "non_preferred_output"}
COLUMNS: dict[str, tuple[str, ...]] = {}

_OUTPUTS = {"chosen": "preferred_output", "rejected": "non_preferred_output"}


def is_like(names: Collection[str]) -> bool:
    """Whether the columns are those of this format."""
    return set(_OUTPUTS.values()) <= set(names)


def unfold(row: Row) -> list[Judgement]:
    """The pair of outputs. Raises `DataError`."""
    assert row.values is not None
    values = dict(row.values)
    request = values.get("input")
    if not isinstance(request, dict) or "messages" not in request:
        raise DataError("'input' must be an object with 'messages'")
    values["prompt"] = prompt_of(read_messages("input.messages", request["messages"]))
    for field, column in _OUTPUTS.items():
        messages = read_messages(column, values.get(column))
        if len(messages) != 1 or messages[0].role != "assistant":
            raise DataError(f"'{column}' must hold one message, of role 'assistant'")
        values[field] = messages[0].content
    return [judged(row, values, made=True)]
