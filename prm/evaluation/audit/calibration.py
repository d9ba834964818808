"""How often the answer that a model picks is the person's, beside how sure of it the model says it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prm.evaluation.training_counts import GROUPS, group_of, name_of
from prm.metrics import Array, Calibration, calibration

LEAST_COMPARED = 200  # ten bins of twenty, below which an interval takes in nearly everything


@dataclass(frozen=True)
class Reliability:
    """People of whom the personal model has learnt from about equally many judgements.

    Args:
        judgements: how many, such as "10 to 29"; "0" are strangers.
        people, comparisons: who they are in number, and what was asked of them here, ties included.
        models: each model's calibration on these comparisons; empty where there are fewer than `LEAST_COMPARED`.
    """

    judgements: str
    people: int
    comparisons: int
    models: dict[str, Calibration]


def find_reliability(
    margins: Mapping[str, Array], p: Array, users: Sequence[str], counts: Mapping[str, int | None]
) -> tuple[Reliability, ...]:
    """Every group that has people, from margins [n] by model and judgements learnt from by person.

    People whose judgements nobody counted (`None`, in runs from before it was done) are in no group.
    """
    groups = {user: group_of(n) for user, n in counts.items() if n is not None}
    group, names = np.array([groups.get(user, -1) for user in users]), np.asarray(users)
    found = []
    for least in GROUPS:
        mine = group == least
        if not mine.any():
            continue
        enough = mine.sum() >= LEAST_COMPARED
        models = {name: calibration(margin[mine], p[mine]) for name, margin in margins.items()} if enough else {}
        found.append(Reliability(name_of(least), len(set(names[mine].tolist())), int(mine.sum()), models))
    return tuple(found)
