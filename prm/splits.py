"""Seeded splits of comparisons, and the check that nothing leaks from one part to the other."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from prm.comparison import Comparison, prompt_key
from prm.errors import PrmError

SplitBy = Literal["pair", "prompt", "response", "user", "time"]
# what a source may say of a comparison in metadata `part`; `unseen`: by somebody of whom nothing is learnt
TRAIN, TEST, UNSEEN = "train", "test", "unseen"


def pair_key(c: Comparison) -> str:
    """The same for everyone who judged these two answers to this prompt, whichever they chose."""
    return "\x00".join([prompt_key(c.prompt), *sorted([c.chosen, c.rejected])])


# what a comparison is made of, that must not stand on both sides; a comparison may hold several
KEYS: dict[str, Callable[[Comparison], tuple[str, ...]]] = {
    "pair": lambda c: (pair_key(c),),
    "prompt": lambda c: (prompt_key(c.prompt),),
    "response": lambda c: (c.chosen, c.rejected),
    "user": lambda c: (c.user_id,),
}


def split(
    comparisons: Sequence[Comparison],
    by: SplitBy,
    test_fraction: float,
    seed: int,
    test_from: str | float | None = None,
) -> tuple[list[Comparison], list[Comparison]]:
    """(train, test), where all judgements of one pair, prompt, response or user fall on the same side.

    A key's side depends on the set of keys and the seed alone, not on the order of the rows. About
    `test_fraction` of the keys, at least one, is held out. By `response`, comparisons of a held-out answer with
    another one are in neither part. By `time`, everything from `test_from` on is held out, or else the latest
    `test_fraction` of each person's comparisons; what happened at the same time stays together.

    Raises `PrmError` where a part would be empty, and by `time` where a comparison has none.
    """
    if test_from is None and not 0.0 < test_fraction < 1.0:
        raise PrmError(f"the held-out fraction must lie between 0 and 1, got {test_fraction}")
    if by == "time":
        train, test = _split_time(comparisons, test_fraction, test_from)
    else:
        key = KEYS[by]
        ranked = sorted({k for c in comparisons for k in key(c)}, key=lambda k: _rank(k, seed))
        n_test = max(1, round(test_fraction * len(ranked)))
        if n_test >= len(ranked):
            raise PrmError(f"cannot split {len(ranked)} {by}(s) into two parts: give more data or another split")
        held_out = set(ranked[:n_test])
        train = [c for c in comparisons if held_out.isdisjoint(key(c))]
        test = [c for c in comparisons if held_out.issuperset(key(c))]
    for name, part in (("training", train), ("held-out", test)):
        if not part:
            raise PrmError(f"the {name} part of the split by {by} is empty: give more data or another split")
    check_leaks(train, test, by)
    return train, test


def marked(c: Comparison) -> str | None:
    """The part that the source put a comparison in: `TRAIN`, `TEST` or `UNSEEN`; `None` where it says nothing."""
    part = c.metadata.get("part")
    return part if part in (TRAIN, TEST, UNSEEN) else None


def never_learnt(c: Comparison) -> bool:
    """True where the source says that nothing is to be learnt from a comparison."""
    return marked(c) in (TEST, UNSEEN)


def split_given(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    """(train, test) by the source's own marks; the parts may share prompts. Raises `PrmError` without any mark."""
    train = [c for c in comparisons if marked(c) == TRAIN]
    if not train:
        raise PrmError("no comparison has metadata 'part' with the value 'train': choose another split")
    return train, [c for c in comparisons if marked(c) != TRAIN]


def shared_prompts(train: Sequence[Comparison], test: Sequence[Comparison]) -> tuple[int, int]:
    """(prompts of the test part that also stand in training, prompts of the test part)."""
    asked, known = ({prompt_key(c.prompt) for c in part} for part in (test, train))
    return len(asked & known), len(asked)


def folds(comparisons: Sequence[Comparison], by: SplitBy, k: int, seed: int) -> list[tuple[int, int]]:
    """For each comparison the folds, 0 to k - 1, of its two answers: one and the same but by `response`.

    All of one pair, prompt, response or user share theirs; by `time`, each person's comparisons are cut into k
    stretches. Raises `PrmError` where there are fewer keys than folds.
    """
    if by == "time":
        stretches = [int(place * k) for place in _time_ranks(comparisons)]
        if len(set(stretches)) < min(k, 2):
            raise PrmError(f"cannot make {k} folds in time: nobody has judgements of two different times")
        return [(stretch, stretch) for stretch in stretches]
    key = KEYS[by]
    ranked = sorted({name for c in comparisons for name in key(c)}, key=lambda name: _rank(name, seed))
    if len(ranked) < k:
        raise PrmError(f"cannot make {k} folds of {len(ranked)} {by}(s): lower 'search.folds' or give more data")
    fold = {name: i % k for i, name in enumerate(ranked)}
    return [(fold[key(c)[0]], fold[key(c)[-1]]) for c in comparisons]


def check_leaks(train: Sequence[Comparison], test: Sequence[Comparison], by: SplitBy) -> None:
    """Raise `PrmError` naming a pair, prompt, response or user on both sides, or who was tested on the past."""
    if by == "time":
        latest: dict[str, float] = {}
        for c in train:
            latest[c.user_id] = max(when(c), latest.get(c.user_id, float("-inf")))
        early = [c for c in test if when(c) <= latest.get(c.user_id, float("-inf"))]
        if early:
            raise PrmError(f"{len(early)} held-out rows are not later than what {early[0].user_id!r} is learnt from")
        return
    key = KEYS[by]
    seen = {k for c in train for k in key(c)}
    leaked = [k for c in test for k in key(c) if k in seen]
    if leaked:
        example = leaked[0].replace("\x00", " | ")[:120]
        raise PrmError(f"{len(leaked)} held-out rows share a {by} with the training part, first: {example!r}")


def thin_out(comparisons: Iterable[Comparison], judges: int, seed: int) -> list[Comparison]:
    """At most `judges` people's comparisons of each pair, drawn by who they are, in the order given."""
    people: dict[str, set[str]] = defaultdict(set)
    rows = list(comparisons)
    for c in rows:
        people[pair_key(c)].add(c.user_id)
    kept = {
        pair: set(sorted(users, key=lambda user: _rank(f"{user}\x00{pair}", seed))[:judges])
        for pair, users in people.items()
    }
    return [c for c in rows if c.user_id in kept[pair_key(c)]]


def when(c: Comparison) -> float:
    """The time of a comparison in seconds; ISO text without a zone is UTC. Raises `PrmError` where there is none."""
    return instant(c.time, c.origin or "a comparison")


def instant(time: str | float | None, origin: str) -> float:
    """ISO text or a number as seconds. Raises `PrmError` naming `origin` for anything else."""
    if isinstance(time, int | float):
        return float(time)
    try:
        moment = datetime.fromisoformat(time or "")
    except ValueError:
        missing = "'time' is missing, but the split goes by it"
        raise PrmError(f"{origin}: {f'{time!r} is no ISO 8601 date' if time else missing}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _split_time(
    comparisons: Sequence[Comparison], fraction: float, test_from: str | float | None
) -> tuple[list[Comparison], list[Comparison]]:
    if test_from is not None:
        moments, start = _moments(comparisons), instant(test_from, "config key 'data.test_from'")
        if comparisons and isinstance(test_from, str) != isinstance(comparisons[0].time, str):
            given = f"{test_from!r}, but {comparisons[0].origin or 'a comparison'} has {comparisons[0].time!r}"
            raise PrmError(f"config key 'data.test_from' is {given}: give both as dates or both as numbers")
        late = [moment >= start for moment in moments]
    else:
        late = [place >= 1.0 - fraction - 1e-9 for place in _time_ranks(comparisons)]
    train = [c for c, is_late in zip(comparisons, late, strict=True) if not is_late]
    return train, [c for c, is_late in zip(comparisons, late, strict=True) if is_late]


def _moments(comparisons: Sequence[Comparison]) -> list[float]:
    """The times of all. Raises `PrmError` for a missing one, and where some are dates and others numbers."""
    moments = [when(c) for c in comparisons]
    first = {isinstance(c.time, str): c.origin or "a comparison" for c in reversed(comparisons)}
    if len(first) > 1:
        raise PrmError(f"'time' is a date in {first[True]} and a number in {first[False]}: they cannot be put in order")
    return moments


def _time_ranks(comparisons: Sequence[Comparison]) -> list[float]:
    """For each comparison, the share of its person's comparisons that are earlier, in [0, 1)."""
    times: dict[str, list[float]] = defaultdict(list)
    moments = _moments(comparisons)
    for c, moment in zip(comparisons, moments, strict=True):
        times[c.user_id].append(moment)
    before: dict[tuple[str, float], float] = {}
    for user, found in times.items():
        for i, moment in enumerate(sorted(found)):
            before.setdefault((user, moment), i / len(found))
    return [before[c.user_id, moment] for c, moment in zip(comparisons, moments, strict=True)]


def _rank(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\x00{key}".encode()).hexdigest()
