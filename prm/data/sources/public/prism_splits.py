"""Who and what of PRISM is learnt from and held out, as the paper draws it; and its set for judging answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prm.data.comparison import Comparison
from prm.data.splits import TEST, TRAIN, UNSEEN, marked
from prm.errors import PrmError

_SEED, _SEEN, _LEARNT = 123, 0.9, 0.9


def paper_parts(dialogues: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """The part of each person's dialogues, by the paper's draw (numpy's legacy generator, seed 123).

    A tenth of the people, and whoever has a single dialogue, are unseen; of the others' n dialogues int(0.9 n) are
    learnt from.

    Args:
        dialogues: names of each person's dialogues; people in the survey's order, dialogues in the log's.
    """
    draw = np.random.RandomState(_SEED)
    people = [list(dialogues)[i] for i in draw.permutation(len(dialogues))]
    n_seen = int(len(people) * _SEEN)
    parts: dict[str, dict[str, str]] = {}
    for place, person in enumerate(people):
        own = list(dialogues[person])
        if place < n_seen:
            own = [own[i] for i in draw.permutation(len(own))]
        n_train = int(len(own) * _LEARNT) if place < n_seen else 0  # of a single dialogue none
        held_out = TEST if n_train else UNSEEN
        parts[person] = {name: TRAIN if i < n_train else held_out for i, name in enumerate(own)}
    return parts


def judged_set(
    comparisons: Sequence[Comparison], seed: int = 0, people: int = 10, samples: int = 76
) -> list[Comparison]:
    """The paper's set for judging answers: samples of so many seen and so many unseen people, drawn with the seed.

    A sample is a held-out turn: its first pair, whose prompt is to be answered and whose chosen answer is what to
    beat. Everybody drawn has at least one; all of their turns are taken where there are no more than `samples`. The
    original draw had no seed, so its very set cannot be had. In the log's order. Raises `PrmError` for too few people.
    """
    turns: dict[tuple[str, Any, Any], Comparison] = {}
    for c in comparisons:
        if marked(c) in (TEST, UNSEEN):
            turns.setdefault((c.user_id, c.metadata.get("dialogue"), c.metadata.get("turn")), c)
    draw = np.random.default_rng(seed)
    drawn: set[str] = set()
    for part in (TEST, UNSEEN):
        candidates = sorted({c.user_id for c in turns.values() if marked(c) == part})
        if len(candidates) < people:
            raise PrmError(f"{len(candidates)} people have turns marked {part!r}, but {people} are to be drawn")
        drawn |= {candidates[i] for i in draw.choice(len(candidates), people, replace=False)}
    pool = [key for key in turns if key[0] in drawn]
    order = [pool[i] for i in draw.permutation(len(pool))]
    first = {key[0]: key for key in reversed(order)}
    taken = set(list(dict.fromkeys([*first.values(), *order]))[: max(samples, len(first))])
    return [turns[key] for key in pool if key in taken]


def part_sizes(comparisons: Sequence[Comparison]) -> list[str]:
    """Pairs, turns, dialogues and people of each part, in words."""
    lines = []
    for part in (TRAIN, TEST, UNSEEN):
        own = [c for c in comparisons if marked(c) == part]
        turns = {(c.metadata["dialogue"], c.metadata["turn"]) for c in own}
        dialogues, people = {dialogue for dialogue, _ in turns}, {c.user_id for c in own}
        counts = f"{len(own):,} pairs in {len(turns):,} turns of {len(dialogues):,} dialogues"
        lines.append(f"part {part}: {counts} by {len(people):,} people")
    return lines
