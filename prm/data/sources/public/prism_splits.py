"""The paper's split of PRISM into users and dialogues, and its sample for evaluating responses."""

from collections.abc import Mapping, Sequence

import numpy as np

from prm.data.comparison import Comparison
from prm.data.splits import TEST, TRAIN, UNSEEN, given_split
from prm.errors import PrmError

_SEED, _SEEN_SHARE, _TRAIN_SHARE = 123, 0.9, 0.9


def paper_parts(dialogues: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """The part of each user's dialogues, by the paper's draw (numpy's legacy generator, seed 123).

    A tenth of the users, and users with a single dialogue, are unseen; of the others' n dialogues int(0.9 n) are
    trained on.

    Args:
        dialogues: names of each user's dialogues; users in the survey's order, dialogues in the log's.
    """
    draw = np.random.RandomState(_SEED)
    people = [list(dialogues)[i] for i in draw.permutation(len(dialogues))]
    n_seen = int(len(people) * _SEEN_SHARE)
    parts: dict[str, dict[str, str]] = {}
    for rank, person in enumerate(people):
        names = list(dialogues[person])
        if rank < n_seen:
            names = [names[i] for i in draw.permutation(len(names))]
        n_train = int(len(names) * _TRAIN_SHARE) if rank < n_seen else 0  # 0 for a single dialogue
        held_out = TEST if n_train else UNSEEN
        parts[person] = {name: TRAIN if i < n_train else held_out for i, name in enumerate(names)}
    return parts


def judged_set(
    comparisons: Sequence[Comparison], seed: int = 0, people: int = 10, samples: int = 76
) -> list[Comparison]:
    """The paper's sample for evaluating responses: held-out turns of `people` seen and `people` unseen users.

    Each turn is represented by its first pair: its prompt is to be answered, and its chosen response is the one to
    beat. Every drawn user has at least one turn; all turns are taken if there are at most `samples`. The original draw
    had no seed, so it cannot be reproduced. In the log's order. Raises `PrmError` for too few users.
    """
    turns: dict[tuple[str, object, object], Comparison] = {}
    for c in comparisons:
        if given_split(c) in (TEST, UNSEEN):
            turns.setdefault((c.user_id, c.metadata.get("dialogue"), c.metadata.get("turn")), c)
    draw = np.random.default_rng(seed)
    drawn: set[str] = set()
    for part in (TEST, UNSEEN):
        candidates = sorted({c.user_id for c in turns.values() if given_split(c) == part})
        if len(candidates) < people:
            raise PrmError(f"{len(candidates)} users have turns marked {part!r}, but {people} are to be drawn")
        drawn |= {candidates[i] for i in draw.choice(len(candidates), people, replace=False)}
    pool = [key for key in turns if key[0] in drawn]
    order = [pool[i] for i in draw.permutation(len(pool))]
    first = {key[0]: key for key in reversed(order)}
    sampled = set(list(dict.fromkeys([*first.values(), *order]))[: max(samples, len(first))])
    return [turns[key] for key in pool if key in sampled]


def part_sizes(comparisons: Sequence[Comparison]) -> list[str]:
    """Numbers of pairs, turns, dialogues and users of each part, in words."""
    lines = []
    for part in (TRAIN, TEST, UNSEEN):
        rows = [c for c in comparisons if given_split(c) == part]
        turns = {(c.metadata["dialogue"], c.metadata["turn"]) for c in rows}
        dialogues, people = {dialogue for dialogue, _ in turns}, {c.user_id for c in rows}
        counts = f"{len(rows):,} pairs in {len(turns):,} turns of {len(dialogues):,} dialogues"
        lines.append(f"part {part}: {counts} by {len(people):,} people")
    return lines
