"""Argilla's records: fields, and what each person answered to each question (SDK 2, nested or flat, and SDK 1)."""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from prm.data.sources.column_names import response_columns
from prm.data.sources.formats.judgement import Judgement, judged
from prm.data.sources.pick_words import common_words
from prm.errors import DataError
from prm.io.rows import Row

TITLE = "Argilla records"
SAYS = "user_id from who answered; a ranking of fields becomes responses and ranks"
READS: set[str] = set()
COLUMNS: dict[str, tuple[str, ...]] = {}

NOT_ANSWERED = "record without answer"
_FLAT = ".responses.users"
_SUGGESTED = ("-suggestion", "-suggestion-metadata", ".suggestion", ".suggestion.score", ".suggestion.agent")
_ABOUT = {
    "id",
    "_server_id",
    "external_id",
    "status",
    "metadata",
    "vectors",
    "suggestions",
    "inserted_at",
    "updated_at",
}


class _Answer(NamedTuple):
    user: object
    question: str
    value: object
    status: object


def is_like(names: Collection[str]) -> bool:
    """Whether the columns are those of this format."""
    nested = {"fields", "responses"} <= set(names)
    flat = any(name.endswith(_FLAT) for name in names)
    return nested or flat or any(name.endswith("-suggestion-metadata") for name in names)


def unfold(row: Row) -> list[Judgement]:
    """One judgement per person who answered; their answers stand in columns of the questions' names.

    Raises `DataError`.
    """
    assert row.values is not None
    values = row.values
    nested = values.get("fields")
    if isinstance(nested, Mapping):
        fields, answers = nested, _answers(values.get("responses"))
    else:
        fields, answers = _flat(values)
    people: dict[str, list[_Answer]] = {}
    for answer in answers:
        people.setdefault(str(answer.user), []).append(answer)
    if not people:
        return [judged(row, dict(fields), left_out=NOT_ANSWERED)]
    return [_of_person(row, fields, said, number) for number, said in enumerate(people.values(), start=1)]


def _of_person(row: Row, fields: Mapping[str, object], said: list[_Answer], number: int) -> Judgement:
    statuses = {str(answer.status) for answer in said if answer.status is not None} - {"submitted"}
    flat = dict(fields) | {"user_id": said[0].user}
    questions = {answer.question for answer in said}
    for answer in said:
        more = _ranking(answer, fields) if _is_ranking(answer.value, fields) else {answer.question: answer.value}
        if flat.get("responses", ranked := more.get("responses")) != ranked and ranked is not None:
            raise DataError(f"the ranking {answer.question!r} is of other fields than another one")
        flat |= more
    return judged(
        row,
        flat,
        f"answer {number}",
        left_out=f"answer {min(statuses)}" if statuses else "",
        answers=frozenset(questions & flat.keys()),
    )


def _answers(responses: object) -> Iterator[_Answer]:
    """From answers by question, or a list with the answers of each person."""
    if isinstance(responses, Mapping):
        for question, answers in responses.items():
            for one in _listed(answers, question):
                yield _Answer(one.get("user_id"), question, one.get("value"), one.get("status"))
        return
    for one in _listed(responses, "responses"):
        answered = one.get("values")
        if not isinstance(answered, Mapping):
            raise DataError("'responses' must hold objects with 'values'")
        for question, value in answered.items():
            inner = value.get("value") if isinstance(value, Mapping) else value
            yield _Answer(one.get("user_id"), question, inner, one.get("status"))


def _flat(values: Mapping[str, object]) -> tuple[Mapping[str, object], Iterator[_Answer]]:
    questions = [name.removesuffix(_FLAT) for name in values if name.endswith(_FLAT)]
    if not questions:
        asked = [name.removesuffix("-suggestion-metadata") for name in values if name.endswith("-suggestion-metadata")]
        return _fields(values, asked), _answers({name: values.get(name) for name in asked})

    def answers() -> Iterator[_Answer]:
        for question in questions:
            columns = [values.get(f"{question}.responses{end}") or [] for end in ("", ".users", ".status")]
            lists = [list(column) for column in columns if isinstance(column, list | tuple)]
            if len(lists) < len(columns):
                raise DataError(f"'{question}.responses' must be a list, as in a data set or JSON export")
            said, users, states = lists
            if len(said) != len(users):
                raise DataError(f"'{question}.responses' holds {len(said)} answers of {len(users)} users")
            for user, value, status in zip(users, said, [*states, *[None] * (len(said) - len(states))]):
                yield _Answer(user, question, value, status)

    return _fields(values, [f"{question}.responses" for question in questions]), answers()


def _fields(values: Mapping[str, object], asked: list[str]) -> dict[str, object]:
    """The columns that are fields of the record."""
    about = {name for name in values if name in _ABOUT or name.endswith(_SUGGESTED)}
    about |= {
        name for name in values for question in asked if name in (question, f"{question}.users", f"{question}.status")
    }
    return {name: value for name, value in values.items() if name not in about}


def _listed(answers: object, question: str) -> list[Mapping[str, object]]:
    """Objects of a list, also if it was saved as an object of lists."""
    if isinstance(answers, Mapping):
        columns = {name: column for name, column in answers.items() if isinstance(column, list | tuple)}
        return [dict(zip(columns, values)) for values in zip(*columns.values(), strict=False)]
    if answers is None:
        return []
    if not isinstance(answers, list | tuple) or not all(isinstance(one, Mapping) for one in answers):
        raise DataError(f"the answers to {question!r} must be a list of objects")
    return list(answers)


def _order(value: object) -> list[tuple[object, object]] | None:
    """(option, rank) of a ranking, `None` for another value; a list of options has the best first."""
    if isinstance(value, Mapping) and isinstance(value.get("rank"), list) and isinstance(value.get("value"), list):
        return list(zip(value["value"], value["rank"]))
    if not isinstance(value, list | tuple) or len(value) < 2:
        return None
    if all(isinstance(one, Mapping) and {"rank", "value"} <= one.keys() for one in value):
        return [(one["value"], one["rank"]) for one in value]
    return [(one, rank) for rank, one in enumerate(value, start=1)] if all(isinstance(v, str) for v in value) else None


def _is_ranking(value: object, fields: Mapping[str, object]) -> bool:
    order = _order(value)
    return order is not None and all(_field(option, fields) is not None for option, _ in order)


def _field(option: object, fields: Mapping[str, object]) -> str | None:
    """The field that an option of a ranking names, by its own name or as "Response 1" names `response_1`."""
    if not isinstance(option, str):
        return None
    if option in fields:
        return option
    found = [
        group[position]
        for group in response_columns(fields)
        if (words := common_words(group, [])).knows(option) and (position := words.position(option)) is not None
    ]
    return found[0] if len(found) == 1 else None


def _ranking(answer: _Answer, fields: Mapping[str, object]) -> dict[str, object]:
    """The ranked fields as `responses`, in the record's order, and their ranks under the question's name."""
    ranks = {_field(option, fields): rank for option, rank in _order(answer.value) or []}
    shown_fields = [name for name in fields if name in ranks and fields[name] is not None]
    return {
        "responses": [fields[name] for name in shown_fields],
        answer.question: [ranks[name] for name in shown_fields],
    }
