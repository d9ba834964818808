"""What the service keeps in its database: each method is one transaction, or part of the caller's."""

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Table, delete, func, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from prm.data.sources.store.schema import (
    Record,
    comparisons,
    facts,
    feedback,
    forgotten,
    keys,
    open_store,
    people,
    shown,
    writing,
)
from prm.errors import PrmError, shorten

T = TypeVar("T")
UserKey = tuple[str, str]  # namespace and user id
_AT_ONCE = 500  # keys in one query
KEY_START = "prm-"  # of every API key


class SavedPerson(NamedTuple):
    """What the store holds of a person beside their feedback.

    Args:
        model: digest of the model that the parameters belong to.
        comparisons: number that they were fitted to.
        parameters: safetensors.
    """

    version: int
    model: str
    comparisons: int
    parameters: bytes


class Store:
    """The database of a service. Methods raise SQLAlchemy's errors if it fails.

    Args:
        url, create: as of `open_store`.
    """

    def __init__(self, url: str, create: bool = True):
        self.engine: Engine = open_store(url, create)
        self.name = self.engine.url.render_as_string(hide_password=True)
        self._secret = self._own_secret()

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def writing(self) -> AbstractContextManager[Connection]:
        """A connection whose transaction is committed at the end of the block."""
        return writing(self.engine)

    def ping(self) -> None:
        """Raise if the database does not answer."""
        with self.engine.connect() as connection:
            connection.execute(select(1))

    def versions(self, users: Collection[UserKey]) -> dict[UserKey, int]:
        """The versions of those of the people that the store has parameters of."""
        columns = (people.c.namespace, people.c.user_id, people.c.version)
        return {(row.namespace, row.user_id): row.version for row in self._of_people(columns, users)}

    def saved(self, users: Collection[UserKey]) -> dict[UserKey, SavedPerson]:
        """What the store has of these people."""
        found = self._of_people(tuple(people.c), users)
        return {
            (row.namespace, row.user_id): SavedPerson(row.version, row.model, row.comparisons, row.parameters)
            for row in found
        }

    def save(self, connection: Connection, user: UserKey, before: int, now: SavedPerson) -> bool:
        """Replace a person's parameters; false, and nothing is done, if their version is not `before`; 0 if new."""
        values = {**now._asdict(), "updated": time.time()}
        if before:
            found = *_is(people, user), people.c.version == before
            return connection.execute(update(people).where(*found).values(**values)).rowcount == 1
        try:
            with connection.begin_nested():
                connection.execute(insert(people).values(namespace=user[0], user_id=user[1], **values))
        except IntegrityError:
            return False
        return True

    def feedback_of_key(self, namespace: str, key: str) -> Record | None:
        """The feedback that came with this idempotency key, if any."""
        with self.engine.connect() as connection:
            query = select(feedback).where(feedback.c.namespace == namespace, feedback.c.idempotency_key == key)
            return connection.execute(query).first()

    def add_feedback(self, connection: Connection, user: UserKey, values: Mapping[str, object]) -> int | None:
        """Add what a person said, and return its number; `None` if its idempotency key is taken."""
        try:
            with connection.begin_nested():
                row = {"namespace": user[0], "user_id": user[1], "received": time.time(), **values}
                added = connection.execute(insert(feedback).values(**row)).inserted_primary_key
        except IntegrityError:
            return None
        assert added is not None
        return int(added[0])

    def add_comparisons(
        self, connection: Connection, user: UserKey, feedback_id: int, rows: Sequence[Mapping[str, object]]
    ) -> None:
        """Add the comparisons that follow from a feedback."""
        if rows:
            own = {"namespace": user[0], "user_id": user[1], "feedback_id": feedback_id}
            connection.execute(insert(comparisons), [{**row, **own} for row in rows])

    def drop_comparisons(self, connection: Connection, numbers: Collection[int]) -> None:
        """Remove these comparisons."""
        for part in _parts(list(numbers)):
            connection.execute(delete(comparisons).where(comparisons.c.id.in_(part)))

    def judged(self, user: UserKey, prompt_key: str, kind: str) -> list[Record]:
        """A person's feedback of one kind on one prompt, in the order in which it came."""
        query = select(feedback).where(
            *_is(feedback, user), feedback.c.prompt_key == prompt_key, feedback.c.kind == kind
        )
        with self.engine.connect() as connection:
            return list(connection.execute(query.order_by(feedback.c.id)))

    def comparisons_of(self, user: UserKey) -> list[Record]:
        """A person's comparisons, in the order in which they came."""
        query = select(comparisons).where(*_is(comparisons, user)).order_by(comparisons.c.id)
        with self.engine.connect() as connection:
            return list(connection.execute(query))

    def feedback_of(self, user: UserKey) -> list[Record]:
        """All that a person said, in the order in which it came."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(feedback).where(*_is(feedback, user)).order_by(feedback.c.id)))

    def shown_to(self, user: UserKey) -> list[Record]:
        """All that was shown to a person, in order."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(shown).where(*_is(shown, user)).order_by(shown.c.time)))

    def add_shown(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Add what was shown."""
        with self.writing() as connection:
            connection.execute(insert(shown), list(rows))

    def find_shown(self, namespace: str, shown_id: str) -> Record | None:
        """What was shown under this id, if to a user of the namespace."""
        with self.engine.connect() as connection:
            query = select(shown).where(shown.c.id == shown_id, shown.c.namespace == namespace)
            return connection.execute(query).first()

    def of_other_models(self, model: str, most: int) -> list[UserKey]:
        """Some of the people whose parameters belong to another model."""
        with self.engine.connect() as connection:
            query = select(people.c.namespace, people.c.user_id).where(people.c.model != model).limit(most)
            return [(row[0], row[1]) for row in connection.execute(query)]

    def forget(self, user: UserKey) -> int:
        """Remove all that is known of a person, and remember a digest of the id; returns the number of rows removed.

        On SQLite nothing of it is left in the files: deleted content is overwritten, and the write-ahead log is cut.
        """
        with self.writing() as connection:
            own = select(feedback.c.id).where(*_is(feedback, user))
            removed = connection.execute(delete(comparisons).where(comparisons.c.feedback_id.in_(own))).rowcount
            for table in (feedback, people, shown):
                removed += connection.execute(delete(table).where(*_is(table, user))).rowcount
            digest = self.digest_of(user)
            if connection.scalar(select(forgotten.c.digest).where(forgotten.c.digest == digest)) is None:
                connection.execute(insert(forgotten).values(digest=digest, time=time.time()))
        if self.engine.dialect.name == "sqlite":
            self._empty_log()
        return removed

    def is_forgotten(self, users: Collection[UserKey]) -> set[UserKey]:
        """Those of the people who were removed at some time."""
        by_digest = {self.digest_of(user): user for user in users}
        found: set[UserKey] = set()
        with self.engine.connect() as connection:
            for part in _parts(list(by_digest)):
                query = select(forgotten.c.digest).where(forgotten.c.digest.in_(part))
                found |= {by_digest[digest] for digest in connection.scalars(query)}
        return found

    def digest_of(self, user: UserKey) -> str:
        """A digest of an id that only this store can make."""
        return hmac.new(self._secret, "\x00".join(user).encode(), hashlib.sha256).hexdigest()

    def has_keys(self) -> bool:
        """Whether there are API keys."""
        with self.engine.connect() as connection:
            return bool(connection.scalar(select(func.count()).select_from(keys)))

    def add_key(self, namespace: str, note: str = "") -> str:
        """Make an API key for a namespace, and return it: only its digest is kept.

        Raises `PrmError` for a namespace of other characters than ASCII letters, digits and "._-", or of more than 80.
        """
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,80}", namespace):  # ":" would make two users of a run one
            raise PrmError(f"a namespace has 1 to 80 letters, digits, '.', '_' or '-', got {shorten(repr(namespace))}")
        key = f"{KEY_START}{secrets.token_urlsafe(32)}"
        with self.writing() as connection:
            values = {"digest": _digest(key), "namespace": namespace, "note": note, "created": time.time()}
            connection.execute(insert(keys).values(**values))
        return key

    def remove_keys(self, namespace: str) -> int:
        """Remove all keys of a namespace; returns how many there were."""
        with self.writing() as connection:
            return connection.execute(delete(keys).where(keys.c.namespace == namespace)).rowcount

    def key_namespaces(self) -> dict[str, str]:
        """The namespace of each API key, by the SHA-256 of the key."""
        with self.engine.connect() as connection:
            return {row.digest: row.namespace for row in connection.execute(select(keys.c.digest, keys.c.namespace))}

    def list_keys(self) -> list[Record]:
        """The namespace, note and time of each API key, oldest first."""
        query = select(keys.c.namespace, keys.c.note, keys.c.created).order_by(keys.c.created)
        with self.engine.connect() as connection:
            return list(connection.execute(query))

    def counts(self) -> dict[str, int]:
        """Number of rows of each table."""
        with self.engine.connect() as connection:
            counted = (people, feedback, comparisons, shown)
            return {t.name: connection.scalar(select(func.count()).select_from(t)) or 0 for t in counted}

    def _of_people(self, columns: Iterable[ColumnElement[object]], users: Collection[UserKey]) -> list[Record]:
        rows: list[Record] = []
        with self.engine.connect() as connection:
            for part in _parts(list(users)):
                query = select(*columns).where(tuple_(people.c.namespace, people.c.user_id).in_(part))
                rows += connection.execute(query)
        return rows

    def _own_secret(self) -> bytes:
        """The store's secret; made when the store is."""
        with self.writing() as connection:
            query = select(facts.c.value).where(facts.c.name == "secret")
            if (found := connection.scalar(query)) is None:
                try:
                    with connection.begin_nested():
                        found = secrets.token_hex(32)
                        connection.execute(insert(facts).values(name="secret", value=found))
                except IntegrityError:  # another process was quicker
                    found = connection.scalar(query)
        assert found is not None
        return bytes.fromhex(found)

    def _empty_log(self) -> None:
        """Write SQLite's write-ahead log into the database, and cut it; readers may delay that until they are done."""
        for _ in range(50):
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").first()
            if busy is not None and not busy[0]:
                return
            time.sleep(0.1)


def to_json(value: object) -> str:
    """JSON as the store holds it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is(table: Table, user: UserKey) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.namespace == user[0], table.c.user_id == user[1]


def _parts(items: list[T]) -> Iterable[list[T]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
