"""The paper's split of PRISM into users and dialogues, and its sample for evaluating responses."""

from collections.abc import Mapping, Sequence

import numpy as np

from prm.data.comparison import Comparison, as_messages, prompt_key
from prm.data.splits import TEST, TRAIN, UNSEEN, given_split
from prm.errors import PrmError

Turn = tuple[str, object, object]  # user, dialogue, number of the turn

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

    The paper takes the turns of one held-out dialogue of each user, drawn without a seed, and gets 76. Here the users,
    the order of each one's held-out dialogues and the order of the turns are drawn: the turns of all first dialogues
    come before those of all second ones, and so on, and the first `samples` are taken, at least one of each user.

    Each turn is represented by its first pair: its prompt is to be answered, and its chosen response is the one to
    beat. In the log's order. A log with fewer users or turns gives what it has; `shortfalls` says so. Raises `PrmError`
    if it has no held-out turn.
    """
    turns: dict[Turn, Comparison] = {}
    asked: dict[tuple[str, str], Turn] = {}
    for c in comparisons:
        prompt = (c.user_id, prompt_key(c.prompt))  # answered once, also if it opens two dialogues
        if given_split(c) in (TEST, UNSEEN) and asked.setdefault(prompt, turn_of(c)) == turn_of(c):
            turns.setdefault(turn_of(c), c)
    if not turns:
        raise PrmError(
            f"no comparison has metadata 'split' with the value {TEST!r} or {UNSEEN!r}, and those are judged: give "
            "PRISM itself, or write it into the 'metadata' of the log's held-out rows"
        )
    draw = np.random.default_rng(seed)
    place: dict[tuple[str, object], int] = {}  # of each drawn dialogue among those of its user
    for part in (TEST, UNSEEN):
        candidates = sorted({c.user_id for c in turns.values() if given_split(c) == part})
        for i in draw.choice(len(candidates), min(people, len(candidates)), replace=False):
            own = list(dict.fromkeys(dialogue for user, dialogue, _ in turns if user == candidates[i]))
            place |= {(candidates[i], own[j]): rank for rank, j in enumerate(draw.permutation(len(own)))}
    pool = [key for key in turns if key[:2] in place]
    order = sorted((pool[i] for i in draw.permutation(len(pool))), key=lambda key: place[key[:2]])
    first = {key[0]: key for key in reversed(order)}
    sampled = set(list(dict.fromkeys([*first.values(), *order]))[: max(samples, len(first))])
    return [turns[key] for key in pool if key in sampled]


def shortfalls(judged: Sequence[Comparison], people: int = 10, samples: int = 76) -> list[str]:
    """Sentences on what a `judged_set` of these sizes lacks."""
    lines = []
    for part, name in ((TEST, "seen"), (UNSEEN, "unseen")):
        if (found := len({c.user_id for c in judged if given_split(c) == part})) < people:
            lines.append(f"{found} {name} users instead of {people}: the log has no more (metadata 'split' {part!r})")
    if len(judged) != samples:
        why = "each user has at least one" if len(judged) > samples else "the drawn users have no more"
        lines.append(f"{len(judged)} turns instead of {samples}: {why}")
    return lines


def other_turns(own: Sequence[Comparison], judged: Comparison, openings: int) -> list[Comparison]:
    """The user's judgements of other turns, each by its first pair: those of the judged dialogue in its order, then the
    first turns of at most `openings` other dialogues, in the log's order, on other prompts.

    Args:
        own: all comparisons of the user.
    """
    turns: dict[Turn, Comparison] = {}
    for c in own:
        turns.setdefault(turn_of(c), c)
    same = [c for key, c in turns.items() if key[:2] == turn_of(judged)[:2] and key != turn_of(judged)]
    others = [c for key, c in turns.items() if key[1] != turn_of(judged)[1] and len(as_messages(c.prompt)) == 1]
    return same + [c for c in others if prompt_key(c.prompt) != prompt_key(judged.prompt)][:openings]


def turn_of(c: Comparison) -> Turn:
    """(user, dialogue, turn) of a comparison that the `prism` source read."""
    return c.user_id, c.metadata.get("dialogue"), c.metadata.get("turn")


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
