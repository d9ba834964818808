"""The rankings of Label Studio's Ranker tag: ids of the items of a List tag, best first."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from prm.errors import DataError, shown
from prm.io.tables import parse_json

_Item = Mapping[str, object]

_UNRANKED = "_"  # the bucket in which Label Studio keeps what was not moved
_TEXTS = ("body", "title")  # of an item; the title stands above the body


def rankings(said: Mapping[str, object], data: Mapping[str, object]) -> dict[str, object]:
    """The ranked items as `responses`, in the task's order, and their ranks under the name of each ranking.

    Items in several buckets have no order, so they are left as they are.

    Args:
        said: results by the name of their tag; data: the task's fields.

    Raises `DataError` if a ranking is not of the items of one field, or two rankings are of different items.
    """
    found: dict[str, object] = {}
    for name, value in said.items():
        if (order := _order(value)) is None:
            continue
        field, items = _field_of(name, order, data)
        ranks = {str(one): rank for rank, one in enumerate(order, start=1)}
        ranked = [item for item in items if str(item["id"]) in ranks]
        texts = [_text(name, item, ranked) for item in ranked]
        if found.get("responses", texts) != texts or (field != "responses" and "responses" in data):
            raise DataError(f"the ranking {name!r} is of other items than 'responses'")
        found |= {"responses": texts, name: [ranks[str(item["id"])] for item in ranked]}
    return found


def parsed(value: object) -> object:
    """The value of a cell that holds JSON text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with suppress(ValueError):
            unpacked: object = parse_json(value)
            return unpacked
    return value


def _order(value: object) -> list[object] | None:
    """The ids in a ranking without buckets, or with one; `None` for another value."""
    inner = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    buckets = inner.get("ranker") if isinstance(inner, Mapping) else None
    if not isinstance(buckets, Mapping):
        return None
    lists = [ids for bucket, ids in buckets.items() if bucket != _UNRANKED]
    return list(lists[0]) if len(lists) == 1 and isinstance(lists[0], list | tuple) else None


def _field_of(name: str, order: Sequence[object], data: Mapping[str, object]) -> tuple[str, list[_Item]]:
    """(the task's field with the list that was ranked, its items): the export does not say which it is."""
    ids = set(map(str, order))
    found = [
        (field, items)
        for field, value in data.items()
        if (items := _items(parsed(value))) and ids <= {str(item["id"]) for item in items}
    ]
    if len(found) != 1 or len(ids) != len(order):
        what = "no list" if not found else "several lists" if len(found) > 1 else "an item twice"
        raise DataError(f"the ranking {name!r} is {shown(list(order))}: the task has {what} with these ids")
    return found[0]


def _items(value: object) -> list[_Item]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) and "id" in one for one in value):
        return []
    return list(value)


def _text(name: str, item: _Item, ranked: Sequence[_Item]) -> str:
    """The text of an item, in the first of its fields that all items have."""
    fields = [field for field in _TEXTS if all(isinstance(one.get(field), str) and one[field] for one in ranked)]
    if not fields:
        raise DataError(f"the ranking {name!r}: not every item has a text under {' or '.join(map(repr, _TEXTS))}")
    return str(item[fields[0]])
