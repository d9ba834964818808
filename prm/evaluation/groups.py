"""Evaluation by the values of metadata fields: slices of the comparisons, and groups of users."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prm.data.comparison import Comparison
from prm.errors import PrmError, meant, shown
from prm.evaluation.rows import Labels, MetricsRow, gains, make_rows
from prm.metrics import Array, Estimate, average, correct, gap, per_user

_FEW_VALUES = 8  # a number with more distinct values than this is cut into quarters


@dataclass(frozen=True)
class Slice:
    """Results on the comparisons with one value of a field, or one range of a number; gains over the uniform model."""

    key: str
    value: str
    comparisons: int
    users: int
    rows: list[MetricsRow]
    gain: Estimate | None
    gain_nll: Estimate | None


@dataclass(frozen=True)
class GroupRow:
    """Accuracy-average of one group (paper, section C.3): mean of its users' accuracies, with its standard error.

    `gap` is the majority's minus this group's, its interval by bootstrap over users; `None` for the majority itself.
    """

    name: str
    accuracy: float
    error: float
    gap: Estimate | None


@dataclass(frozen=True)
class Group:
    """Users who share a value of a metadata field and have decided comparisons; `comparisons` counts these."""

    value: str
    people: int
    comparisons: int
    majority: bool
    rows: list[GroupRow]


@dataclass(frozen=True)
class Groups:
    """Users grouped by one field, the majority (the group with most users) first.

    `known_only` is true if users unknown to the model were left out; `without` counts users without the field.
    """

    key: str
    known_only: bool
    without: int
    groups: list[Group]


def slices_of(
    key: str,
    values: Sequence[object],
    models: Mapping[str, Array],
    rules: Mapping[str, Array],
    labels: Labels,
) -> list[Slice]:
    """One slice per value of the field, without comparisons whose value is `None`."""
    slices = []
    for value, index in _values(key, values):
        part = labels.take(index)
        model_part, rule_part = ({name: m[index] for name, m in table.items()} for table in (models, rules))
        size = len(index), len(set(part.users))
        slices.append(Slice(key, value, *size, make_rows(model_part, rule_part, part), *gains(model_part, part)))
    return slices


def groups_of(key: str, comparisons: Sequence[Comparison], margins: Mapping[str, Array], labels: Labels) -> Groups:
    """Groups of the users the model knows, by a field of theirs; of all users if it knows none of them.

    Raises `PrmError` if no user has the field, or a user has it with two values.
    """
    group_of = group_of_people(key, comparisons)
    any_known = bool(labels.known.any())
    kept = (labels.known if any_known else ~labels.known) & (labels.p != 0.5)
    names = np.array([group_of.get(user, "") for user in labels.users])
    users = {user: group_of[user] for user in dict.fromkeys(labels.users[kept].tolist()) if user in group_of}
    size, compared = Counter(users.values()), Counter(names[kept].tolist())
    order = sorted(size, key=lambda value: (-size[value], -compared[value], value))
    right = {name: correct(margin, labels.p) for name, margin in margins.items()}

    def row(name: str, value: str) -> GroupRow:
        largest, group = (kept & (names == v) for v in (order[0], value))
        mean = average(right[name][group], labels.users[group])
        sums = (per_user(right[name][part], labels.users[part]) for part in (largest, group))
        majority, means = (s / c for s, c in sums)
        return GroupRow(name, mean.value, mean.error, None if value == order[0] else gap(majority, means))

    groups = [
        Group(value, size[value], compared[value], value == order[0], [row(name, value) for name in margins])
        for value in order
    ]
    return Groups(key, any_known and not labels.known.all(), len(set(labels.users.tolist()) - group_of.keys()), groups)


def group_of_people(key: str, comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Each user's value of the field; users without it are left out. Raises as `groups_of` does."""
    first_values: dict[str, tuple[str, str]] = {}
    for c in comparisons:
        if (value := c.metadata.get(key)) in (None, ""):
            continue
        first, origin = first_values.setdefault(c.user_id, (str(value), c.origin))
        if str(value) != first:
            places = f" ({origin}; {c.origin})" if origin and c.origin else ""
            raise PrmError(
                f"user {c.user_id!r} has the field {key!r} as {shown(first)} and as {shown(str(value))}{places}: "
                "groups need a field that stays the same for each user; --by takes any field"
            )
    if not first_values:
        raise no_field(key, comparisons)
    return {user: value for user, (value, _) in first_values.items()}


def no_field(key: str, comparisons: Sequence[Comparison]) -> PrmError:
    """The error for a metadata field that no comparison has, with the closest that one has."""
    known = dict.fromkeys(name for c in comparisons for name in c.metadata)
    return PrmError(f"no comparison has the metadata field {key!r}{meant(key, known)}")


def _values(key: str, values: Sequence[object]) -> list[tuple[str, list[int]]]:
    """(value or range, positions) of each value, in order."""
    present = [i for i, value in enumerate(values) if value is not None]
    numbers = {i: value for i, value in enumerate(values) if isinstance(value, int | float)}
    if len(set(numbers.values())) > _FEW_VALUES and len(numbers) == len(present):
        edges = np.quantile(list(numbers.values()), [0.25, 0.5, 0.75])
        quarter = {i: int(np.searchsorted(edges, number)) for i, number in numbers.items()}
        groups = [[i for i in present if quarter[i] == q] for q in range(4)]
        ranges = [sorted(numbers[i] for i in group) for group in groups if group]
        return [(f"{r[0]:g} to {r[-1]:g}", g) for r, g in zip(ranges, filter(None, groups), strict=True)]
    distinct = sorted({str(values[i]): values[i] for i in present}.items(), key=lambda item: _order(item[1]))
    names = [name for name, _ in distinct]
    return [(name, [i for i in present if str(values[i]) == name]) for name in names]


def _order(value: object) -> tuple[bool, float, str]:
    """Sort key: numbers by size, then other values by name."""
    return (False, float(value), str(value)) if isinstance(value, int | float) else (True, 0.0, str(value))
