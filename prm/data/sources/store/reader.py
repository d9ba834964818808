"""The comparisons of a live service's database, as the rows of a log."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import select

from prm.data.sources.store.schema import comparisons, open_store
from prm.io.rows import Row

_ROWS_AT_ONCE = 1000


def full_id(namespace: str, user_id: str) -> str:
    """The id of a user of a namespace in a run: `NAMESPACE:USER`, in the unnamed one the id as it is."""
    return f"{namespace}:{user_id}" if namespace else user_id


def read_store(url: str) -> Iterator[Row]:
    """Every comparison of a store, in the order in which it came. Raises `PrmError` if it cannot be read."""
    engine = open_store(url, create=False)
    name = engine.url.render_as_string(hide_password=True)
    try:
        with engine.connect() as connection:
            query = select(comparisons).order_by(comparisons.c.id)
            for row in connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(query):
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
    finally:
        engine.dispose()
