"""Calibration: how often the response that a model picks is the user's choice, against its predicted probability."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prm.evaluation.training_counts import GROUPS, group_of, name_of
from prm.metrics import Array, Calibration, calibration

LEAST_COMPARED = 200  # ten bins of twenty; with fewer, an interval covers nearly everything


@dataclass(frozen=True)
class Reliability:
    """Calibration on users with about equally many training comparisons.

    Args:
        train_comparisons: the number of them, such as "10 to 29"; "0" are users whom the model does not know.
        people, comparisons: number of these users, and of their comparisons here, including ties.
        models: each model's calibration on these comparisons; empty if there are fewer than `LEAST_COMPARED`.
    """

    train_comparisons: str
    people: int
    comparisons: int
    models: dict[str, Calibration]


def find_reliability(
    margins: Mapping[str, Array], p: Array, users: Sequence[str], counts: Mapping[str, int | None]
) -> tuple[Reliability, ...]:
    """Every group that has users, from margins [n] by model and numbers of training comparisons by user.

    Users whose comparisons were not counted (`None`, in older runs) are in no group.
    """
    groups = {user: group_of(n) for user, n in counts.items() if n is not None}
    group, names = np.array([groups.get(user, -1) for user in users]), np.asarray(users)
    reliability = []
    for minimum in GROUPS:
        in_group = group == minimum
        if not in_group.any():
            continue
        enough = in_group.sum() >= LEAST_COMPARED
        models = (
            {name: calibration(margin[in_group], p[in_group]) for name, margin in margins.items()} if enough else {}
        )
        reliability.append(
            Reliability(name_of(minimum), len(set(names[in_group].tolist())), int(in_group.sum()), models)
        )
    return tuple(reliability)
