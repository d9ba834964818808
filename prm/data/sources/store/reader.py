"""The comparisons of a live service's database, as the rows of a log."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from prm.data.sources.store.schema import comparisons, open_store, reason, safe_name
from prm.errors import PrmError, counted
from prm.io.rows import Row

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1000


def full_id(namespace: str, user_id: str) -> str:
    """The id of a user of a namespace in a run: `NAMESPACE:USER`, in the unnamed one the id as it is."""
    return f"{namespace}:{user_id}" if namespace else user_id


def read_store(url: str) -> Iterator[Row]:
    """Every comparison of a store, in the order in which it came; those that come meanwhile are left out.

    An early release could keep the user `NAMESPACE:USER` beside that user of the namespace: a warning names such users.

    Raises `PrmError` if it cannot be read, and for an address with a password: a run keeps the address of its log.
    """
    engine = open_store(url, create=False)
    name = safe_name(engine.url)
    try:
        if name != engine.url.render_as_string(hide_password=False):
            raise PrmError(f"{name}: leave the password out, which a run would keep: set PGPASSWORD, or use ~/.pgpass")
        last, newest = 0, None
        while True:
            with engine.connect() as connection:  # no long transaction: it would keep what is deleted meanwhile
                if newest is None:
                    newest = connection.scalar(select(func.max(comparisons.c.id))) or 0
                    if two := _of_two(connection):
                        logger.warning(
                            "warning: %s: it has %s twice, in a namespace and in none, and each is read as one: %s",
                            name,
                            counted(len(two), "user"),
                            ", ".join(two[:3]),
                        )
                query = select(comparisons).where(comparisons.c.id > last, comparisons.c.id <= newest)
                rows = connection.execute(query.order_by(comparisons.c.id).limit(_ROWS_AT_ONCE)).all()
            if not rows:
                return
            last = rows[-1].id
            for row in rows:
                values: dict[str, object] = {
                    "user_id": full_id(row.namespace, row.user_id),
                    "prompt": json.loads(row.prompt),
                    "chosen": row.chosen,
                    "rejected": row.rejected,
                    "p_chosen": row.p_chosen,
                    "time": datetime.fromtimestamp(row.time, UTC).isoformat(),
                }
                if row.user_text:
                    values["user_text"] = row.user_text
                yield Row(f"{name}, comparison {row.id}", values)
    except SQLAlchemyError as error:
        raise PrmError(f"{name}: {reason(error)}") from None
    finally:
        engine.dispose()


def _of_two(connection: Connection) -> list[str]:
    """Ids of users of a run who are two in the store: of a namespace, and of none."""
    namespace, user_id = comparisons.c.namespace, comparisons.c.user_id
    query = select(user_id).where(namespace == "", user_id.contains(":")).distinct()
    if not (unnamed := set(connection.scalars(query))):
        return []
    named = connection.execute(select(namespace, user_id).where(namespace != "").distinct())
    return sorted(unnamed & {full_id(*row) for row in named})
