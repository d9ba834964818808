"""Votes on two conversations or answers: Chatbot Arena's releases, its Kaggle competition, MT-bench."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from prm.data.comparison import Message
from prm.data.sources.fields import yes_or_no
from prm.data.sources.formats.judgement import Judgement, judged
from prm.data.sources.messages import read_messages, written_out
from prm.errors import DataError, meant, shown
from prm.io.rows import Row
from prm.io.tables import parse_json

TITLE = "Chatbot Arena or MT-bench"
SAYS = (
    "prompt from what the conversations share, response_a and response_b from what follows in each; "
    "with 'turn' k, from their first k turns"
)
READS = {"conversation_a", "conversation_b", "turn", "winner_model_a", "winner_model_b", "winner_tie"}
COLUMNS = {"time": ("tstamp", "timestamp"), "conversation_id": ("evaluation_session_id", "question_id")}

_SIDES = ("conversation_a", "conversation_b")
_LISTS = ("prompt", "response_a", "response_b")
_ONE_HOT = {"winner_model_a": "model_a", "winner_model_b": "model_b", "winner_tie": "tie"}
_WRITTEN_OUT = "answers that differ before the last turn are read as text, with the turns that follow"


def is_like(names: Collection[str]) -> bool:
    """Whether the columns are those of this format."""
    return set(_SIDES) <= set(names) or {*_LISTS, *_ONE_HOT} <= set(names)


def unfold(row: Row) -> list[Judgement]:
    """The vote: the shared beginning is the prompt, what follows in each conversation is that response.

    If the first different answers are not the last messages, a response is the text of all that follows. Raises
    `DataError`.
    """
    assert row.values is not None
    values = dict(row.values)
    a: Sequence[Message]
    b: Sequence[Message]
    if values.keys() >= {*_SIDES}:
        a, b = (read_messages(name, values[name]) for name in _SIDES)
    elif values.keys() >= {*_LISTS}:
        a, b = _from_lists(values)
    else:
        raise _lacking(
            values, _LISTS if len({*_LISTS[1:]} & values.keys()) > len({*_SIDES} & values.keys()) else _SIDES
        )
    a, b = (_first_turns(name, side, values.get("turn")) for name, side in zip(_SIDES, (a, b), strict=True))
    prompt, responses = split_conversations(a, b)
    values |= dict(zip(_LISTS, (prompt_of(prompt), *map(written_out, responses)), strict=True))
    if values.keys() & {*_ONE_HOT}:
        values["winner"] = _one_hot(values)
    return [judged(row, values, remark=_WRITTEN_OUT if max(map(len, responses)) > 1 else "", made=True)]


def _lacking(values: Mapping[str, object], needed: Sequence[str]) -> DataError:
    """The error for a row that has some of the columns at most."""
    missing = [name for name in needed if name not in values]
    are = "field {} is" if len(missing) == 1 else "fields {} are"
    others = [name for name in values if name not in needed]
    return DataError(
        f"{are.format(' and '.join(map(repr, missing)))} missing; the row has {', '.join(map(shown, values))}"
        + meant(missing[0], others)
    )


def prompt_of(messages: Sequence[Message]) -> object:
    """The prompt as a row holds it: text, or messages if there are several."""
    return messages[0].content if len(messages) == 1 else [message._asdict() for message in messages]


def split_conversations(
    a: Sequence[Message], b: Sequence[Message]
) -> tuple[Sequence[Message], tuple[Sequence[Message], Sequence[Message]]]:
    """(messages that both begin with, (what follows in a, what follows in b)).

    Raises `DataError` unless both end with an answer, and only answers differ.
    """
    for name, side in zip(_SIDES, (a, b), strict=True):
        if side[-1].role != "assistant":
            raise DataError(f"'{name}' must end with an answer, a message of role 'assistant'")
    same = [x == y for x, y in zip(a, b)]
    start = same.index(False) if False in same else min(len(a), len(b)) - 1
    asked_a, asked_b = ([message for message in side if message.role != "assistant"] for side in (a, b))
    if asked_a != asked_b or not a[start].role == b[start].role == "assistant":
        raise DataError(f"{' and '.join(map(repr, _SIDES))} must differ in answers only; message {start} differs")
    if start == 0 or a[start - 1].role != "user":
        raise DataError(f"'{_SIDES[0]}' must hold a message of role 'user' before message {start}, an answer")
    return a[:start], (a[start:], b[start:])


def _first_turns(name: str, messages: Sequence[Message], turn: object) -> Sequence[Message]:
    """The messages up to the answer to the user's message number `turn`; all of them if it is `None`."""
    if turn is None:
        return messages
    number = int(turn) if isinstance(turn, int | str) and str(turn).strip().isdigit() else 0
    starts = [i for i, message in enumerate(messages) if message.role == "user"]
    if not 1 <= number <= len(starts):
        raise DataError(f"'turn' must be a number from 1 to {len(starts)}, the turns of '{name}', got {shown(turn)}")
    return messages[: [*starts, len(messages)][number]]


def _from_lists(values: Mapping[str, object]) -> tuple[Sequence[Message], Sequence[Message]]:
    """Both conversations, from lists of the user's messages and of each side's answers, also as JSON text."""
    prompts, *sides = (_turns(name, values[name]) for name in _LISTS)
    conversations = []
    for name, answers in zip(_LISTS[1:], sides, strict=True):
        if len(answers) != len(prompts):
            raise DataError(f"'{name}' holds {len(answers)} answers for {len(prompts)} messages in 'prompt'")
        pairs = zip(prompts, answers, strict=True)
        messages = [
            {"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair)
        ]
        conversations.append(read_messages(name, messages))
    return conversations[0], conversations[1]


def _turns(name: str, value: object) -> list[object]:
    """The texts of a list, of its JSON text, or the one text."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = parse_json(value) if value.lstrip().startswith("[") else value
    if value is None or value == []:
        raise DataError(f"field '{name}' is missing: it is empty")
    return list(value) if isinstance(value, list | tuple) else [value]


def _one_hot(values: Mapping[str, object]) -> str:
    """The winner that one of three columns marks."""
    if not values.keys() >= _ONE_HOT.keys():
        raise _lacking(values, [*_ONE_HOT])
    if missing := [name for name in _ONE_HOT if values[name] is None]:
        raise DataError(f"field '{missing[0]}' is missing: it is empty")
    marked = [name for name in _ONE_HOT if yes_or_no(name, values[name])]
    if len(marked) != 1:
        raise DataError(
            f"one of {', '.join(map(repr, _ONE_HOT))} must be 1, got {', '.join(map(repr, marked)) or 'none'}"
        )
    return _ONE_HOT[marked[0]]
