"""What a store holds of what was shown, predicted and said, as arrays and small records."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from prm.data.comparison import parse_prompt, prompt_key
from prm.data.sources.store.schema import Record, comparisons, feedback, forgotten, open_store, people, shown
from prm.errors import PrmError
from prm.metrics import Array

_AT_ONCE = 1000
_UNSEEN = -1  # no hash is -1


class Shown(NamedTuple):
    """Responses that were shown to a person, the first of them on top.

    Args:
        number: of the ranking; person: number of the person.
        texts: digests of the responses, in the order of the request; all alike of those that `top_n` left out.
        personal, generic: indices of the person's best response, and of the generic user's.
        held_out: the generic user's was on top, not the person's.
        p_personal: P(the person prefers the first to the second), predicted when they were shown.
        known_by: number of comparisons that the person was known by.
    """

    number: int
    person: int
    time: float
    texts: tuple[int, ...]
    personal: int
    generic: int
    held_out: bool
    p_personal: float
    known_by: int

    @property
    def top(self) -> int:
        """Digest of the response on top."""
        return self.texts[self.generic if self.held_out else self.personal]

    @property
    def seen(self) -> set[int]:
        """Digests of the responses without those that `top_n` left out."""
        return {*self.texts} - {_UNSEEN}

    @property
    def differs(self) -> bool:
        """Whether the person's best response is another one than the generic user's."""
        return self.texts[self.personal] != self.texts[self.generic]


class Said(NamedTuple):
    """A feedback on responses that were shown.

    Args:
        kind: `pair`, `pick`, `thumb` or `rating`.
        texts: digests of the responses that it is of.
        value: as of `Judgement`.
    """

    shown: Shown
    kind: str
    texts: tuple[int, ...]
    value: float | None


@dataclass(frozen=True)
class Predicted:
    """Comparisons, in the order in which they came, with what was predicted before each of them; arrays [n].

    Args:
        person, prompt: numbers of the person and of the prompt.
        own, generic: P(chosen preferred) by the person's parameters, and by the generic user's.
        p_chosen: the person's answer; 0.5 is a tie.
        known_by: number of comparisons that the person was known by.
        time: seconds since 1970.
    """

    person: NDArray[np.int64]
    prompt: NDArray[np.int64]
    own: Array
    generic: Array
    p_chosen: Array
    known_by: NDArray[np.int64]
    time: Array


@dataclass(frozen=True)
class Counts:
    """How much a store holds.

    Args:
        people: who said something or were shown something; held_out: of these, shown the generic user's ranking.
        feedback: by kind.
        shown, answered: rankings that were shown to a person, and those of them with feedback.
        ties: of the comparisons.
        forgotten: people who were removed.
        first, last: seconds since 1970 of the first and the last comparison; `None` without comparisons.
    """

    people: int
    held_out: int
    known: int
    feedback: dict[str, int]
    comparisons: int
    ties: int
    shown: int
    answered: int
    forgotten: int
    first: float | None
    last: float | None


@dataclass(frozen=True)
class Records:
    """All that a report is made of; `store` is the address without its password."""

    store: str
    predicted: Predicted
    said: tuple[Said, ...]
    counts: Counts


class _Numbers(dict[object, int]):
    """A number for each thing, from 0, in the order in which they come."""

    def __missing__(self, key: object) -> int:
        self[key] = len(self)
        return self[key]


def read_records(url: str) -> Records:
    """Read a store as it is at one moment. Raises `PrmError` if it cannot be read or is of another version."""
    engine = open_store(url, create=False)
    name = engine.url.render_as_string(hide_password=True)
    try:
        with _at_one_moment(engine) as connection:
            return _read(connection, name)
    except SQLAlchemyError as error:
        raise PrmError(f"{name}: {' '.join(str(getattr(error, 'orig', None) or error).split())}") from None
    finally:
        engine.dispose()


def _at_one_moment(engine: Engine) -> Connection:
    """A connection whose queries all see the same state, while others write; SQLite's transactions do so anyway."""
    connection = engine.connect()
    if engine.dialect.name == "postgresql":
        connection = connection.execution_options(isolation_level="REPEATABLE READ")
    return connection


def _read(connection: Connection, store: str) -> Records:
    numbers = _Numbers()
    predicted = _predicted(connection, numbers)
    by_person, by_id, seen = _shown(connection, numbers)
    said, kinds = list[Said](), Counter[str]()
    for row in _rows(connection, select(feedback).order_by(feedback.c.id)):
        kinds[row.kind] += 1
        person, body = numbers[row.namespace, row.user_id], json.loads(row.body)
        texts = tuple(map(hash, body["responses"]))
        if (found := _shown_before(row, person, texts, body, by_person, by_id)) is not None:
            said.append(Said(found, row.kind, texts, body["value"]))
    times = predicted.time
    counts = Counts(
        people=len(numbers),
        held_out=len({one.person for one in by_id.values() if one.held_out}),
        known=_count(connection, select(func.count()).select_from(people)),
        feedback=dict(sorted(kinds.items())),
        comparisons=len(times),
        ties=int((predicted.p_chosen == 0.5).sum()),
        shown=seen,
        answered=len({one.shown.number for one in said}),
        forgotten=_count(connection, select(func.count()).select_from(forgotten).where(forgotten.c.time > 0.0)),
        first=float(times.min()) if len(times) else None,
        last=float(times.max()) if len(times) else None,
    )
    return Records(store, predicted, tuple(said), counts)


def _predicted(connection: Connection, numbers: _Numbers) -> Predicted:
    c, prompts = comparisons.c, _Numbers()
    columns = (c.namespace, c.user_id, c.prompt, c.expected, c.expected_generic, c.p_chosen, c.known_by, c.time)
    rows = [
        (numbers[row.namespace, row.user_id], prompts[hash(row.prompt)], *row[3:])
        for row in _rows(connection, select(*columns).order_by(c.id))
    ]
    person, prompt, own, generic, p_chosen, known_by, time = zip(*rows, strict=True) if rows else ((),) * 7
    whole, real = (lambda x: np.array(x, np.int64)), (lambda x: np.array(x, np.float64))
    return Predicted(
        whole(person), whole(prompt), real(own), real(generic), real(p_chosen), whole(known_by), real(time)
    )


def _shown(
    connection: Connection, numbers: _Numbers
) -> tuple[dict[tuple[int, int], list[Shown]], dict[str, Shown], int]:
    """(what was shown by person and prompt, by id, number of rows), of people; nobody is the generic user."""
    by_person, by_id = dict[tuple[int, int], list[Shown]](), dict[str, Shown]()
    query = select(shown).where(shown.c.user_id.is_not(None)).order_by(shown.c.time)
    for row in _rows(connection, query):
        person = numbers[row.namespace, row.user_id]
        texts = tuple(_UNSEEN if text is None else hash(text) for text in json.loads(row.responses))
        picks = (row.personal, row.generic, row.held_out, row.p_personal, row.comparisons)
        one = Shown(len(by_id), person, row.time, texts, *picks)
        by_id[row.id] = one
        by_person.setdefault((person, _prompt(json.loads(row.prompt))), []).append(one)
    return by_person, by_id, len(by_id)


def _shown_before(
    row: Record,
    person: int,
    texts: tuple[int, ...],
    body: Mapping[str, object],
    by_person: Mapping[tuple[int, int], list[Shown]],
    by_id: Mapping[str, Shown],
) -> Shown | None:
    """What a feedback is about: what it names, or else the last that showed these responses to the person before."""
    if row.shown_id is not None:
        found = by_id.get(row.shown_id)
        return found if found is not None and found.person == person else None
    candidates = by_person.get((person, _prompt(body["prompt"])), [])
    fitting = (one for one in reversed(candidates) if one.time <= row.received and {*texts} <= {*one.texts})
    return next(fitting, None)


def _prompt(value: object) -> int:
    return hash(prompt_key(parse_prompt(value)))


def _rows(connection: Connection, query: object) -> Iterator[Record]:
    return iter(connection.execution_options(yield_per=_AT_ONCE).execute(query))  # type: ignore[call-overload]


def _count(connection: Connection, query: object) -> int:
    return connection.scalar(query) or 0  # type: ignore[call-overload]
