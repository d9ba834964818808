"""An evaluation by the values of metadata fields: of comparisons (slices), and of people (groups)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prm.data.comparison import Comparison
from prm.errors import PrmError, shown
from prm.evaluation.rows import Labels, MetricsRow, gains, make_rows
from prm.metrics import Array, Estimate, average, correct, gap, per_user

_FEW_VALUES = 8  # a number with more values than this is looked at in quarters


@dataclass(frozen=True)
class Slice:
    """The comparisons with one value of a field, or one range of a number; gains over the tuned uniform model."""

    key: str
    value: str
    comparisons: int
    users: int
    rows: list[MetricsRow]
    gain: Estimate | None
    gain_nll: Estimate | None


@dataclass(frozen=True)
class GroupRow:
    """Accuracy-average of one group (paper, section C.3): mean of its people's accuracies, with its standard error.

    `gap` is the majority's less this group's, its interval by bootstrap over people; `None` for the majority itself.
    """

    name: str
    accuracy: float
    error: float
    gap: Estimate | None


@dataclass(frozen=True)
class Group:
    """People who share a value of a metadata field: those with decided judgements, `comparisons` by them."""

    value: str
    people: int
    comparisons: int
    majority: bool
    rows: list[GroupRow]


@dataclass(frozen=True)
class Groups:
    """Everyone by one field, the majority (the group with most people) first.

    `known_only` is true where people unknown to the model were left out; `without` counts people who lack the field.
    """

    key: str
    known_only: bool
    without: int
    groups: list[Group]


def slices_of(
    key: str,
    values: Sequence[Any],
    models: Mapping[str, Array],
    rules: Mapping[str, Array],
    labels: Labels,
) -> list[Slice]:
    """One slice per value of the field; comparisons whose value is `None` are in none."""
    found = []
    for value, index in _values(key, values):
        part = labels.take(index)
        mine, lengths = ({name: m[index] for name, m in table.items()} for table in (models, rules))
        size = len(index), len(set(part.users))
        found.append(Slice(key, value, *size, make_rows(mine, lengths, part), *gains(mine, part)))
    return found


def groups_of(key: str, comparisons: Sequence[Comparison], margins: Mapping[str, Array], labels: Labels) -> Groups:
    """Everyone the model knows, by a field of theirs; where it knows nobody, simply everyone.

    Raises `PrmError` where nobody has the field, or somebody has it with two values.
    """
    group_of = group_of_people(key, comparisons)
    anyone = bool(labels.known.any())
    kept = (labels.known if anyone else ~labels.known) & (labels.p != 0.5)
    names = np.array([group_of.get(user, "") for user in labels.users])
    people = {user: group_of[user] for user in dict.fromkeys(labels.users[kept].tolist()) if user in group_of}
    size, judged = Counter(people.values()), Counter(names[kept].tolist())
    order = sorted(size, key=lambda value: (-size[value], -judged[value], value))
    right = {name: correct(margin, labels.p) for name, margin in margins.items()}

    def row(name: str, value: str) -> GroupRow:
        most, mine = (kept & (names == v) for v in (order[0], value))
        alike = average(right[name][mine], labels.users[mine])
        majority, means = (s / c for s, c in (per_user(right[name][part], labels.users[part]) for part in (most, mine)))
        return GroupRow(name, alike.value, alike.error, None if value == order[0] else gap(majority, means))

    groups = [
        Group(value, size[value], judged[value], value == order[0], [row(name, value) for name in margins])
        for value in order
    ]
    return Groups(key, anyone and not labels.known.all(), len(set(labels.users.tolist()) - group_of.keys()), groups)


def group_of_people(key: str, comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Each person's value of the field; people without it are left out. Raises as `groups_of` does."""
    found: dict[str, tuple[str, str]] = {}
    for c in comparisons:
        if (value := c.metadata.get(key)) in (None, ""):
            continue
        first, origin = found.setdefault(c.user_id, (str(value), c.origin))
        if str(value) != first:
            places = f" ({origin}; {c.origin})" if origin and c.origin else ""
            raise PrmError(
                f"person {c.user_id!r} has the field {key!r} as {shown(first)} and as {shown(str(value))}{places}: "
                "a group is made by a field that stays the same for each person; --by takes any"
            )
    if not found:
        raise PrmError(f"no comparison has the metadata field {key!r}")
    return {user: value for user, (value, _) in found.items()}


def _values(key: str, values: Sequence[Any]) -> list[tuple[str, list[int]]]:
    """(value or range, positions) of each value, in order. Raises `PrmError` where none is given."""
    given = [i for i, value in enumerate(values) if value is not None]
    if not given:
        raise PrmError(f"no comparison has the metadata field {key!r}")
    kinds = {values[i] for i in given if isinstance(values[i], int | float)}
    if len(kinds) > _FEW_VALUES and all(isinstance(values[i], int | float) for i in given):
        edges = np.quantile([values[i] for i in given], [0.25, 0.5, 0.75])
        quarter = {i: int(np.searchsorted(edges, values[i])) for i in given}
        groups = [[i for i in given if quarter[i] == q] for q in range(4)]
        span = [sorted(values[i] for i in group) for group in groups if group]
        return [(f"{s[0]:g} to {s[-1]:g}", g) for s, g in zip(span, filter(None, groups), strict=True)]
    plain = sorted({str(values[i]): values[i] for i in given}.items(), key=lambda item: _order(item[1]))
    names = [name for name, _ in plain]
    return [(name, [i for i in given if str(values[i]) == name]) for name in names]


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, before all else by name."""
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)
