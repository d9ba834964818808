"""Seeded splits of comparisons, and the check that nothing leaks from one part to the other."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Literal

from prm.data.comparison import Comparison, moment_of, prompt_key
from prm.data.conversations import Groups, first_prompts, history_of
from prm.errors import DataError, PrmError

SplitBy = Literal["pair", "prompt", "conversation", "response", "user", "time"]
# what a source may say of a comparison in metadata `part`; `unseen`: by somebody of whom nothing is learnt
TRAIN, TEST, UNSEEN = "train", "test", "unseen"


def pair_key(c: Comparison) -> str:
    """The same for everyone who judged these two answers to this prompt, whichever they chose."""
    return "\x00".join([prompt_key(c.prompt), *sorted([c.chosen, c.rejected])])


def keys_of(comparisons: Sequence[Comparison], by: SplitBy) -> list[tuple[str, ...]]:
    """What each comparison is made of that must not stand on both sides; by `response` these are two.

    A prompt stands for its whole conversation (`first_prompts`). Raises `PrmError` for a missing conversation id.
    """
    if by == "pair":
        return [(pair_key(c),) for c in comparisons]
    if by == "response":
        return [(c.chosen, c.rejected) for c in comparisons]
    if by == "user":
        return [(c.user_id,) for c in comparisons]
    if by == "conversation":
        return _conversations(comparisons)
    first = first_prompts(comparisons)
    return [(first[c.prompt],) for c in comparisons]


def training_holdout(by: SplitBy | Literal["given"], comparisons: Iterable[Comparison]) -> SplitBy:
    """What folds and the validation part share nothing of, where the test part is split `by` this."""
    if by != "given":
        return by
    return "conversation" if all(c.conversation_id is not None for c in comparisons) else "prompt"


def split(
    comparisons: Sequence[Comparison],
    by: SplitBy,
    test_fraction: float,
    seed: int,
    test_from: str | float | None = None,
) -> tuple[list[Comparison], list[Comparison]]:
    """(train, test), where all judgements of one pair, prompt, response or user fall on the same side.

    A key's side depends on the set of keys and the seed alone, not on the order of the rows. About
    `test_fraction` of the keys, at least one, is held out. By `prompt`, all prompts of a conversation are one key. By
    `response`, comparisons of a held-out answer with another one are in neither part, nor is what is learnt from after
    a held-out answer. By `time`, everything from `test_from` on is held out, or else the latest
    `test_fraction` of each person's comparisons; what happened at the same time stays together.

    Raises `PrmError` where a part would be empty, and by `time` where a comparison has none.
    """
    if test_from is None and not 0.0 < test_fraction < 1.0:
        raise PrmError(f"the held-out fraction must lie between 0 and 1, got {test_fraction}")
    if by == "time":
        train, test = _split_time(comparisons, test_fraction, test_from)
    else:
        keys = keys_of(comparisons, by)
        ranked = _ranked(keys, seed)
        n_test = max(1, round(test_fraction * len(ranked)))
        if n_test >= len(ranked):
            fault = f"cannot split {len(ranked)} {by}(s) into two parts: give more data or another split"
            raise PrmError(fault + _joined(comparisons, by))
        held_out = set(ranked[:n_test])
        read = zip(comparisons, keys, strict=True)
        train = [c for c, own in read if held_out.isdisjoint(own) and held_out.isdisjoint(_history(c, by))]
        test = [c for c, own in zip(comparisons, keys, strict=True) if held_out.issuperset(own)]
    for name, part in (("training", train), ("held-out", test)):
        if not part:
            raise PrmError(f"the {name} part of the split by {by} is empty: give more data or another split")
    check_leaks(train, test, by)
    return train, test


def marked(c: Comparison) -> str | None:
    """The part that the source put a comparison in: `TRAIN`, `TEST` or `UNSEEN`; `None` where it says nothing."""
    part = c.metadata.get("part")
    return part if part in (TRAIN, TEST, UNSEEN) else None


def never_trained_on(c: Comparison) -> bool:
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


def shared_conversations(train: Sequence[Comparison], test: Sequence[Comparison]) -> int:
    """Prompts of the test part that begin one of training, or go on from it, and do not stand there themselves."""
    first = first_prompts([*train, *test])
    known, learnt = {prompt_key(c.prompt) for c in train}, {first[c.prompt] for c in train}
    return len({key for c in test if (key := prompt_key(c.prompt)) not in known and first[c.prompt] in learnt})


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
    keys = keys_of(comparisons, by)
    ranked = _ranked(keys, seed)
    if len(ranked) < k:
        fault = f"cannot make {k} folds of {len(ranked)} {by}(s): lower 'search.folds' or give more data"
        raise PrmError(fault + _joined(comparisons, by))
    fold = {name: i % k for i, name in enumerate(ranked)}
    return [(fold[own[0]], fold[own[-1]]) for own in keys]


def check_leaks(train: Sequence[Comparison], test: Sequence[Comparison], by: SplitBy) -> None:
    """Raise `PrmError` naming a key (pair, prompt, ...) on both sides, or who was tested on the past.

    Prompts of one conversation are one; by `response` an answer leaks, too, that stands in what is learnt from.
    """
    if by == "time":
        latest: dict[str, float] = {}
        for c in train:
            latest[c.user_id] = max(when(c), latest.get(c.user_id, float("-inf")))
        early = [c for c in test if when(c) <= latest.get(c.user_id, float("-inf"))]
        if early:
            raise PrmError(f"{len(early)} held-out rows are not later than what {early[0].user_id!r} is learnt from")
        return
    keys = keys_of([*train, *test], by)
    seen = {k for own in keys[: len(train)] for k in own} | {answer for c in train for answer in _history(c, by)}
    leaked = [k for own in keys[len(train) :] for k in own if k in seen]
    if leaked:
        example = leaked[0].replace("\x00", " | ")[:120]
        raise PrmError(f"{len(leaked)} held-out rows share a {by} with the training part, first: {example!r}")


def subsample_judges(comparisons: Iterable[Comparison], judges: int, seed: int) -> list[Comparison]:
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
    if not time:
        raise PrmError(f"{origin}: 'time' is missing, but the split goes by it")
    try:
        moment = moment_of(time)
    except DataError as error:
        raise PrmError(f"{origin}: {error}") from None
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


def _conversations(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """A key for each comparison; conversations from which answers were compared with one another share theirs."""
    ids = []
    for c in comparisons:
        if c.conversation_id is None:
            origin = c.origin or "a comparison"
            raise PrmError(f"{origin}: 'conversation_id' is missing, but the split goes by it")
        ids.append(c.conversation_id.split("\n"))
    joined = Groups(name for own in ids for name in own)
    for first, *others in ids:
        for other in others:
            joined.join(first, other)
    key = joined.first()
    return [(key[own[0]],) for own in ids]


def _history(c: Comparison, by: SplitBy) -> tuple[str, ...]:
    """The answers in a prompt, where the split goes by answers."""
    return history_of(c.prompt) if by == "response" else ()


def _joined(comparisons: Iterable[Comparison], by: SplitBy) -> str:
    """What to say of prompts that are one, being beginnings of one another."""
    n = len({prompt_key(c.prompt) for c in comparisons}) if by == "prompt" else 0
    return f" ({n} prompts, of which those that begin one another are one)" if n > 1 else ""


def _ranked(keys: Iterable[tuple[str, ...]], seed: int) -> list[str]:
    return sorted({key for own in keys for key in own}, key=lambda key: _rank(key, seed))


def _rank(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\x00{key}".encode()).hexdigest()
