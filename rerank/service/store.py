"""What the service keeps in its database: each method is one transaction, or part of the caller's."""

import hashlib
import hmac
import json
import logging
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import SQLAlchemyError

from prm.data.sources.store.reader import full_id
from prm.data.sources.store.schema import (
    Record,
    comparisons,
    facts,
    feedback,
    forgotten,
    keys,
    open_store,
    people,
    reason,
    safe_name,
    shown,
    writing,
)
from prm.errors import PrmError, counted, shorten

logger = logging.getLogger(__name__)

T = TypeVar("T")
UserKey = tuple[str, str]  # namespace and user id
FORGOTTEN = -1  # the version of somebody who was forgotten, and of whom the store has no parameters since
_AT_ONCE = 500  # keys in one query
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,80}")  # ":" would make two users of a run one
_SHOWN_LOCK = 0x73686F  # PostgreSQL's advisory lock: whoever writes what was shown shares it, whoever forgets does not
_ERASE_WAIT = 5.0  # seconds that a deletion waits for SQLite's readers
_UNERASED = "unerased"  # the fact that SQLite's files may hold what was deleted
_AMONG_USERS = tuple_(people.c.namespace, people.c.user_id).in_(bindparam("users", expanding=True))
# made once, as each request asks; one statement, so that all of it is of one moment
_VERSIONS = union_all(
    select(people.c.version, people.c.namespace, people.c.user_id).where(_AMONG_USERS),
    select(literal(FORGOTTEN), literal(""), forgotten.c.digest).where(
        forgotten.c.digest.in_(bindparam("digests", expanding=True))
    ),
)
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
        self.name = safe_name(self.engine.url)
        self._is_sqlite = self.engine.dialect.name == "sqlite"
        # SQLite's writers poll for their turn; those of one process wait in line, and hold no connection meanwhile
        self._turn: AbstractContextManager[object] = threading.Lock() if self._is_sqlite else nullcontext()
        self._secret = self._own_secret()
        self.unerased = self._is_sqlite and self._fact(_UNERASED) is not None
        self.erase(0.0)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection whose transaction is committed at the end of the block."""
        with self._turn, writing(self.engine) as connection:
            yield connection

    @contextmanager
    def changing(self, user: UserKey) -> Iterator[Connection]:
        """`writing` about a person: nobody else does meanwhile, in whatever replica."""
        with self.writing() as connection:
            self._lock(connection, int(self.digest_of(user)[:15], 16))
            yield connection

    def ping(self) -> None:
        """Raise if the database does not answer."""
        with self.engine.connect() as connection:
            connection.execute(select(1))

    def versions(self, users: Collection[UserKey], connection: Connection | None = None) -> dict[UserKey, int]:
        """The versions of those of the people that the store has parameters of, or who were forgotten (`FORGOTTEN`).

        Args:
            connection: of the caller's transaction, if there is one.
        """
        if not users:
            return {}
        if connection is None:
            with self.engine.connect() as connection:
                return self.versions(users, connection)
        found: dict[UserKey, int] = {}
        for part in _parts(list(users)):
            by_digest = self._by_digest(part)
            asked = {"users": part, "digests": list(by_digest)}
            for version, namespace, name in connection.execute(_VERSIONS, asked):
                if version == FORGOTTEN:
                    found.setdefault(by_digest[name], version)
                else:
                    found[namespace, name] = version
        return found

    def saved(self, users: Collection[UserKey]) -> dict[UserKey, SavedPerson]:
        """What the store has of these people."""
        found: dict[UserKey, SavedPerson] = {}
        if users:
            with self.engine.connect() as connection:
                for part in _parts(list(users)):
                    for row in connection.execute(select(people).where(_AMONG_USERS), {"users": part}):
                        person = SavedPerson(row.version, row.model, row.comparisons, row.parameters)
                        found[row.namespace, row.user_id] = person
        return found

    def save(self, connection: Connection, user: UserKey, now: SavedPerson) -> None:
        """Replace a person's parameters; `connection` is that of `changing`."""
        values = {**now._asdict(), "updated": time.time()}
        if not connection.execute(update(people).where(*_is(people, user)).values(**values)).rowcount:
            connection.execute(insert(people).values(namespace=user[0], user_id=user[1], **values))

    def next_version(self, version: int) -> int:
        """The version of a person's next parameters. The first one is random: nobody who returns has an old one."""
        return version + 1 if version > 0 else 1 + secrets.randbelow(2**53)

    def feedback_of_key(self, namespace: str, key: str) -> Record | None:
        """The feedback that came with this idempotency key, if any."""
        with self.engine.connect() as connection:
            query = select(feedback).where(feedback.c.namespace == namespace, feedback.c.idempotency_key == key)
            return connection.execute(query).first()

    def add_feedback(self, connection: Connection, user: UserKey, values: Mapping[str, object]) -> int | None:
        """Add what a person said, and return its number; `None` if its idempotency key is taken."""
        row = {"namespace": user[0], "user_id": user[1], "received": time.time(), **values}
        return connection.scalar(self._unless_there(feedback).values(**row).returning(feedback.c.id))

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

    def comparisons_from(self, feedback_id: int) -> int:
        """Number of comparisons that followed from a feedback."""
        with self.engine.connect() as connection:
            query = select(func.count()).select_from(comparisons).where(comparisons.c.feedback_id == feedback_id)
            return connection.scalar(query) or 0

    def judged(self, user: UserKey, prompt_key: str, kind: str, connection: Connection | None = None) -> list[Record]:
        """A person's feedback of one kind on one prompt, in the order in which it came."""
        if connection is None:
            with self.engine.connect() as connection:
                return self.judged(user, prompt_key, kind, connection)
        query = select(feedback).where(
            *_is(feedback, user), feedback.c.prompt_key == prompt_key, feedback.c.kind == kind
        )
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
        """Add what was shown, except to people who were forgotten since."""
        users = {(str(row["namespace"]), str(row["user_id"])) for row in rows if row["user_id"] is not None}
        digests = self._by_digest(users)
        with self.writing() as connection:
            self._lock(connection, _SHOWN_LOCK, shared=True)
            times: dict[UserKey, float] = {}
            for part in _parts(list(digests)):
                query = select(forgotten.c.digest, forgotten.c.time).where(forgotten.c.digest.in_(part))
                for digest, moment in connection.execute(query):
                    times[digests[digest]] = max(abs(moment), times.get(digests[digest], 0.0))
            last = [times.get((row["namespace"], row["user_id"]), 0.0) for row in rows]  # type: ignore[arg-type]
            kept = [row for row, moment in zip(rows, last, strict=True) if float(row["time"]) > moment]  # type: ignore[arg-type]
            if kept:
                connection.execute(insert(shown), kept)

    def find_shown(self, namespace: str, shown_id: str) -> Record | None:
        """What was shown under this id, if to a user of the namespace."""
        with self.engine.connect() as connection:
            query = select(shown).where(shown.c.id == shown_id, shown.c.namespace == namespace)
            return connection.execute(query).first()

    def of_other_models(self, model: str, most: int, but: Collection[UserKey] = ()) -> list[UserKey]:
        """Some of the people whose parameters belong to another model, except these."""
        with self.engine.connect() as connection:
            query = select(people.c.namespace, people.c.user_id).where(people.c.model != model).limit(most + len(but))
            found = [(row[0], row[1]) for row in connection.execute(query)]
        return [user for user in found if user not in but][:most]

    def forget(self, user: UserKey, in_run: bool = False) -> int:
        """Remove all that is known of a person, and remember a digest of the id; returns the number of rows removed.

        Of somebody of whom nothing was known the digest is remembered, too: what they were shown just now may be on its
        way from another replica. They do not count as forgotten: the time of the digest is negative.

        Args:
            in_run: the person is known from the run.

        On SQLite nothing of it is left in the files, either; `unerased` is true as long as readers delay that.
        """
        with self.changing(user) as connection:
            self._lock(connection, _SHOWN_LOCK)
            own = select(feedback.c.id).where(_is_either(feedback, user))
            removed = connection.execute(delete(comparisons).where(comparisons.c.feedback_id.in_(own))).rowcount
            for table in (feedback, people, shown):
                removed += connection.execute(delete(table).where(_is_either(table, user))).rowcount
            is_this = forgotten.c.digest == self.digest_of(user)
            before = connection.scalar(select(forgotten.c.time).where(is_this))
            moment = time.time() * (1 if removed or in_run or (before or 0.0) > 0.0 else -1)
            connection.execute(delete(forgotten).where(is_this))
            connection.execute(insert(forgotten).values(digest=self.digest_of(user), time=moment))
            if removed and self._is_sqlite:  # so that a process that is killed now is not the last to know
                connection.execute(delete(facts).where(facts.c.name == _UNERASED))
                connection.execute(insert(facts).values(name=_UNERASED, value=secrets.token_hex(8)))
        self.unerased = self.unerased or bool(removed and self._is_sqlite)
        self.erase(_ERASE_WAIT)
        return removed

    def erase(self, wait: float) -> None:
        """Take what was deleted out of SQLite's files, if it is still there, and if readers allow it within `wait` s.

        `secure_delete` leaves copies of rows that SQLite had moved from page to page: `VACUUM` writes the file anew.
        """
        if not self.unerased:
            return
        try:
            deletion = self._fact(_UNERASED)
            path = str(self.engine.url.database)
            with self._turn, closing(sqlite3.connect(path, wait, isolation_level=None)) as connection:
                connection.execute("VACUUM")
                if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    return
            with self.writing() as connection:  # unless another process deleted more meanwhile
                connection.execute(delete(facts).where(facts.c.name == _UNERASED, facts.c.value == deletion))
            self.unerased = False
        except (SQLAlchemyError, sqlite3.Error) as error:
            logger.warning("what was deleted is still in the store's files: %s", reason(error))

    def is_forgotten(self, users: Collection[UserKey]) -> set[UserKey]:
        """Those of the people who were removed at some time."""
        by_digest = self._by_digest(users)
        found: set[UserKey] = set()
        with self.engine.connect() as connection:
            for part in _parts(list(by_digest)):
                query = select(forgotten.c.digest).where(forgotten.c.digest.in_(part))
                found |= {by_digest[digest] for digest in connection.scalars(query)}
        return found

    def digest_of(self, user: UserKey) -> str:
        """A digest of an id that only this store can make."""
        return hmac.new(self._secret, "\x00".join(user).encode(), hashlib.sha256).hexdigest()

    def keys_of(self, namespace: str, users: Iterable[str]) -> dict[str, UserKey]:
        """Whom ids mean to a key of a namespace.

        In the unnamed namespace `NAMESPACE:USER` means that user of that namespace, if the store has such a namespace,
        of keys or of users: they are the same user of a run.
        """
        found = {user: (namespace, user) for user in users}
        if namespace:
            return found
        parts = {user: (other[1][0], other[1][1]) for user, key in found.items() if len(other := spellings(key)) > 1}
        if not parts:
            return found
        with self.engine.connect() as connection:
            names = {name for name, _ in parts.values() if _has_namespace(connection, name)}
        return found | {user: part for user, part in parts.items() if part[0] in names}

    def key_of(self, namespace: str, user: str) -> UserKey:
        """`keys_of` of one id."""
        return self.keys_of(namespace, [user])[user]

    def _by_digest(self, users: Iterable[UserKey]) -> dict[str, UserKey]:
        """People by the digests that the store may remember them by."""
        return {self.digest_of(spelling): user for user in users for spelling in spellings(user)}

    def has_keys(self) -> bool:
        """Whether there are API keys."""
        with self.engine.connect() as connection:
            return bool(connection.scalar(select(func.count()).select_from(keys)))

    def add_key(self, namespace: str, note: str = "") -> str:
        """Make an API key for a namespace, and return it: only its digest is kept.

        The unnamed namespace, "", has the users of a run by their ids as they are. Those of its users whose ids begin
        with the name of a new namespace, as in `NAMESPACE:USER`, become users of that.

        Raises `PrmError` for a namespace of other characters than ASCII letters, digits and "._-", or of more than 80.
        """
        if namespace and not _NAMESPACE.fullmatch(namespace):
            raise PrmError(f"a namespace has 1 to 80 letters, digits, '.', '_' or '-', got {shorten(repr(namespace))}")
        key = f"{KEY_START}{secrets.token_urlsafe(32)}"
        with self.writing() as connection:
            moved = 0 if not namespace or _has_namespace(connection, namespace) else _move(connection, namespace)
            values = {"digest": _digest(key), "namespace": namespace, "note": note, "created": time.time()}
            connection.execute(insert(keys).values(**values))
        if moved:
            whose = f"whose ids begin with '{namespace}:'"
            logger.info("%s %s: users of the namespace from now on", counted(moved, "user"), whose)
        return key

    def remove_keys(self, digests: Collection[str]) -> int:
        """Remove API keys by their SHA-256; returns how many there were."""
        with self.writing() as connection:
            return sum(
                connection.execute(delete(keys).where(keys.c.digest.in_(d))).rowcount for d in _parts([*digests])
            )

    def key_namespaces(self) -> dict[str, str]:
        """The namespace of each API key, by the SHA-256 of the key."""
        with self.engine.connect() as connection:
            return {row.digest: row.namespace for row in connection.execute(select(keys.c.digest, keys.c.namespace))}

    def list_keys(self) -> list[Record]:
        """The SHA-256, namespace, note and time of each API key, oldest first."""
        query = select(keys).order_by(keys.c.created)
        with self.engine.connect() as connection:
            return list(connection.execute(query))

    def counts(self) -> dict[str, int]:
        """Number of rows of each table."""
        with self.engine.connect() as connection:
            counted = (people, feedback, comparisons, shown)
            return {t.name: connection.scalar(select(func.count()).select_from(t)) or 0 for t in counted}

    def _lock(self, connection: Connection, number: int, shared: bool = False) -> None:
        """Wait for a lock of all replicas that lasts as long as the transaction; SQLite's writers have one anyway."""
        if not self._is_sqlite:
            lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
            connection.execute(select(lock(number)))

    def _fact(self, name: str) -> str | None:
        with self.engine.connect() as connection:
            return connection.scalar(select(facts.c.value).where(facts.c.name == name))

    def _own_secret(self) -> bytes:
        """The store's secret; made when the store is."""
        with self.writing() as connection:
            connection.execute(self._unless_there(facts).values(name="secret", value=secrets.token_hex(32)))
            return bytes.fromhex(connection.scalars(select(facts.c.value).where(facts.c.name == "secret")).one())

    def _unless_there(self, table: Table) -> sqlite_dialect.Insert | postgresql.Insert:
        """An insertion that does nothing if the row's key is taken, even in a transaction that is not over yet."""
        made = sqlite_dialect.insert(table) if self._is_sqlite else postgresql.insert(table)
        return made.on_conflict_do_nothing()


def to_json(value: object) -> str:
    """JSON as the store holds it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is(table: Table, user: UserKey) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.namespace == user[0], table.c.user_id == user[1]


def spellings(user: UserKey) -> list[UserKey]:
    """The person, and the other one who would be the same user of a run, if there is one."""
    namespace, name = user
    if namespace:
        return [user, ("", full_id(*user))]
    namespace, _, name = name.partition(":")
    return [user, (namespace, name)] if name and _NAMESPACE.fullmatch(namespace) else [user]


def _is_either(table: Table, user: UserKey) -> ColumnElement[bool]:
    return or_(*(and_(*_is(table, spelling)) for spelling in spellings(user)))


def _has_namespace(connection: Connection, namespace: str) -> bool:
    found = [exists().where(table.c.namespace == namespace) for table in (keys, people, feedback, shown)]
    return bool(connection.scalar(select(or_(*found))))


def _move(connection: Connection, namespace: str) -> int:
    """Make users of the unnamed namespace those of a new one, by their ids; returns how many had said something."""
    start, moved = f"{namespace}:", set[str]()
    for table in (people, feedback, comparisons, shown):
        own = (
            table.c.namespace == "",
            func.substr(table.c.user_id, 1, len(start)) == start,
            func.length(table.c.user_id) > len(start),
        )
        moved |= set(connection.scalars(select(table.c.user_id).where(*own).distinct()))
        rest = func.substr(table.c.user_id, len(start) + 1)
        connection.execute(update(table).where(*own).values(namespace=namespace, user_id=rest))
    return len(moved)


def _parts(items: list[T]) -> Iterable[list[T]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
