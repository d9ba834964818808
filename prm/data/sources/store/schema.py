"""The tables of the live service's database, and how it is opened (extra `serve`).

Importing this raises `PrmError` if SQLAlchemy is not installed.
"""

import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from sqlite3 import Connection as SqliteConnection
from sqlite3 import OperationalError as SqliteError
from typing import Any, TypeAlias

from prm.errors import PrmError, meant
from prm.io.disk import make_folder

try:
    from sqlalchemy import (
        URL,
        BigInteger,
        Boolean,
        Column,
        Connection,
        Engine,
        Float,
        ForeignKey,
        Index,
        Integer,
        LargeBinary,
        MetaData,
        Row,
        String,
        Table,
        Text,
        UniqueConstraint,
        create_engine,
        event,
        func,
        inspect,
        make_url,
        select,
    )
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import ConnectionPoolEntry
except ModuleNotFoundError as missing:
    if missing.name != "sqlalchemy":
        raise
    raise PrmError("a store needs SQLAlchemy: pip install 'personalized-rm[serve]'") from None

VERSION = "1"  # of the tables; their times are seconds since 1970
_BUSY = 30_000  # milliseconds that a connection waits for another's write
_ISOLATION = "READ COMMITTED"  # whatever the server's default: who has waited for a lock must see what came before
_MAKING_TABLES = 0x70726D  # PostgreSQL's advisory lock: `create table if not exists` of two replicas would fail
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_SCHEME = re.compile(r"[A-Za-z][\w+.-]*:")  # what has none is the path of a file
_ID = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up integers alone

Record: TypeAlias = Row[Any]  # of one of these tables; its columns are attributes

tables = MetaData()

# facts about the store itself: the version of its tables, the secret that hashes forgotten ids
facts = Table("facts", tables, Column("name", String(40), primary_key=True), Column("value", Text, nullable=False))

# what the service knows of a person beyond the run: parameters of one row of the user model
people = Table(
    "people",
    tables,
    Column("namespace", String(80), primary_key=True),
    Column("user_id", Text, primary_key=True),
    # counts the updates, so that none is lost; begins at random, so that nobody who was forgotten has it again
    Column("version", BigInteger, nullable=False),
    Column("model", String(64), nullable=False),  # digest of what the parameters belong to
    Column("comparisons", Integer, nullable=False),  # that they were fitted to, those of the run included
    Column("parameters", LargeBinary, nullable=False),  # safetensors
    Column("updated", Float, nullable=False),
)

# what people said, as they said it
feedback = Table(
    "feedback",
    tables,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("namespace", String(80), nullable=False),
    Column("user_id", Text, nullable=False),
    Column("idempotency_key", String(200), nullable=False),
    Column("kind", String(10), nullable=False),  # pair, pick, thumb, rating
    Column("prompt_key", String(64), nullable=False),  # digest of the prompt
    Column("body", Text, nullable=False),  # JSON
    Column("shown_id", String(40)),
    Column("received", Float, nullable=False),
    UniqueConstraint("namespace", "idempotency_key"),
    Index("feedback_of_person", "namespace", "user_id", "prompt_key"),
    sqlite_autoincrement=True,  # no number is given twice, though rows are deleted
)

# the comparisons that follow from it
comparisons = Table(
    "comparisons",
    tables,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("feedback_id", _ID, ForeignKey("feedback.id"), nullable=False, index=True),
    Column("namespace", String(80), nullable=False),
    Column("user_id", Text, nullable=False),
    Column("prompt", Text, nullable=False),  # JSON: text or messages
    Column("chosen", Text, nullable=False),
    Column("rejected", Text, nullable=False),
    Column("p_chosen", Float, nullable=False),
    Column("user_text", Text, nullable=False),
    Column("expected", Float, nullable=False),  # P(chosen preferred) before the person said so
    Column("expected_generic", Float, nullable=False),  # the same for the generic user
    Column("known_by", Integer, nullable=False),  # comparisons that the person was known by
    Column("time", Float, nullable=False),
    Index("comparisons_of_person", "namespace", "user_id"),
    sqlite_autoincrement=True,
)

# what was shown to whom: what a pick refers to, and what `rerank report` measures
shown = Table(
    "shown",
    tables,
    Column("id", String(40), primary_key=True),
    Column("namespace", String(80), nullable=False),
    Column("user_id", Text),
    Column("prompt", Text, nullable=False),  # JSON
    Column("responses", Text, nullable=False),  # JSON
    Column("held_out", Boolean, nullable=False),  # shown as to the generic user, to measure the gain
    Column("personal", Integer, nullable=False),  # index of the person's best response
    Column("generic", Integer, nullable=False),  # index of the generic user's
    Column("p_personal", Float, nullable=False),  # P(the person prefers the first to the second)
    Column("comparisons", Integer, nullable=False),  # how many the person was known by
    Column("time", Float, nullable=False),
    Index("shown_to_person", "namespace", "user_id"),
)

keys = Table(
    "keys",
    tables,
    Column("digest", String(64), primary_key=True),  # SHA-256 of the key, which is random and long
    Column("namespace", String(80), nullable=False),
    Column("note", Text, nullable=False),
    Column("created", Float, nullable=False),
)

# keyed digests of ids that were deleted, so that a run that holds them does not bring them back
forgotten = Table(
    "forgotten",
    tables,
    Column("digest", String(64), primary_key=True),
    Column("time", Float, nullable=False),  # negative if nothing was known of the person: nobody was forgotten
)


def open_store(url: str, create: bool = True) -> Engine:
    """Connect to a database, and make the tables that it lacks.

    SQLite writes ahead (WAL), overwrites what is deleted, and has a transaction on disk before it ends. A transaction
    that writes must run with `writing(engine)`.

    Args:
        url: `sqlite:///PATH`, the path itself, or `postgresql://...`.
        create: make the file and the tables if there are none.

    Raises `PrmError` if the URL is none, the database cannot be reached, or its tables are of another version.
    """
    try:
        parsed = make_url(url) if _SCHEME.match(url) else URL.create("sqlite", database=url)
    except (ValueError, SQLAlchemyError):  # the message would show the password
        raise PrmError(
            "this is no address of a store: write sqlite:///FOLDER/store.db or postgresql://USER@HOST:PORT/DATABASE"
        ) from None
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql", "postgres"):
        raise PrmError(f"{safe_name(parsed)}: a store is sqlite or postgresql{meant(kind, ('sqlite', 'postgresql'))}")
    parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
    if kind == "sqlite":
        _require_file(parsed, create)
    try:
        engine = create_engine(
            parsed,
            pool_pre_ping=kind != "sqlite",
            pool_size=8,
            max_overflow=16,
            pool_timeout=30,
            hide_parameters=True,  # errors would show what users said
            **({} if kind == "sqlite" else {"isolation_level": _ISOLATION}),
        )
        if kind == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        with writing(engine) if create else engine.connect() as connection:
            found = _version(connection, create)
    except ModuleNotFoundError as missing:
        raise PrmError(f"{safe_name(parsed)} needs {missing.name}: pip install 'personalized-rm[serve]'") from None
    except SQLAlchemyError as error:
        raise PrmError(f"{safe_name(parsed)}: {reason(error)}") from None
    if found != VERSION:
        engine.dispose()
        if found is None:
            raise PrmError(f"{safe_name(parsed)}: it is no store of 'rerank serve'")
        raise PrmError(f"{safe_name(parsed)}: its tables are of version {found}, this release reads version {VERSION}")
    return engine


def _version(connection: Connection, create: bool) -> str | None:
    """The version of a database's tables, which are made where there are none; `None` if it is no store."""
    if create and connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_MAKING_TABLES)))
    is_store = inspect(connection).has_table(facts.name)
    if not is_store and create:
        tables.create_all(connection)
        connection.execute(facts.insert().values(name="version", value=VERSION))
    elif not is_store:
        return None
    return connection.scalar(select(facts.c.value).where(facts.c.name == "version"))


def writing(engine: Engine) -> AbstractContextManager[Connection]:
    """A context manager: a connection whose transaction writes, and is committed at the end of the block.

    On SQLite it takes the write lock at once, so that two of them cannot wait for each other.
    """
    return engine.execution_options(writes=True).begin()


def _require_file(url: URL, create: bool) -> None:
    path = Path(url.database) if url.database and url.database != ":memory:" else None
    if path is None:
        raise PrmError("a store must be a file: sqlite:///FOLDER/store.db")
    if not create and not path.is_file():
        raise PrmError(f"{path}: no such store")
    if create:
        make_folder(path.parent)


def _prepare_sqlite(connection: SqliteConnection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions, not the driver
    connection.execute(f"PRAGMA busy_timeout={_BUSY}").close()
    until = time.monotonic() + _BUSY / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            break
        except SqliteError:  # the first change to WAL does not wait for others who change it
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
    for pragma in (
        "synchronous=FULL",  # NORMAL may lose the last transactions when the power fails
        "secure_delete=ON",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def safe_name(url: URL) -> str:
    """The address of a store without its password."""
    hidden: Mapping[str, str] = {name: "***" for name in url.query if "password" in name}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def reason(error: Exception) -> str:
    """What the database says of an error, in one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
