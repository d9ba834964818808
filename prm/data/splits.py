"""Seeded splits of comparisons into training and held-out parts, and a check for leaks between them."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Literal

from prm.data.comparison import Comparison, moment_of, prompt_key
from prm.data.conversations import Groups, first_prompts, history_of
from prm.errors import DataError, PrmError, counted

SplitBy = Literal["pair", "prompt", "conversation", "response", "user", "time"]
# values of metadata `split`; `unseen`: by a user without training comparisons
TRAIN, TEST, UNSEEN = "train", "test", "unseen"


def pair_key(c: Comparison) -> str:
    """A key of the prompt and the two responses, the same whichever was chosen."""
    return "\x00".join([prompt_key(c.prompt), *sorted([c.chosen, c.rejected])])


def keys_of(comparisons: Sequence[Comparison], by: SplitBy) -> list[tuple[str, ...]]:
    """Each comparison's keys, which must not be in both parts: one, or two by `response`.

    Prompts of one conversation share a key (`first_prompts`). Raises `PrmError` for a missing conversation id.
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
    """How to split folds and the validation part if the test part is split `by` this."""
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
    """(train, test), with all comparisons of one pair, prompt, conversation, response or user in the same part.

    A key's part depends only on the set of keys and the seed, not on the order of the rows. About `test_fraction` of
    the keys, at least one, is held out. By `prompt`, all prompts of a conversation are one key. By `response`,
    comparisons of a held-out response with another one are in neither part, nor are other comparisons whose prompt
    contains a held-out response. By `time`, everything from `test_from` on is held out, or else the latest
    `test_fraction` of each user's comparisons; comparisons at the same time stay together.

    Raises `PrmError` if a part would be empty, and by `time` if a comparison has no time.
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
            fault = f"cannot split {counted(len(ranked), by)} into two parts: give more data or choose another split"
            raise PrmError(fault + _joined(comparisons, by))
        held_out = set(ranked[:n_test])
        keyed = zip(comparisons, keys, strict=True)
        train = [c for c, c_keys in keyed if held_out.isdisjoint(c_keys) and held_out.isdisjoint(_history(c, by))]
        test = [c for c, c_keys in zip(comparisons, keys, strict=True) if held_out.issuperset(c_keys)]
    for name, part in (("training", train), ("held-out", test)):
        if not part:
            raise PrmError(f"the {name} part of the split by {by} is empty: give more data or choose another split")
    check_leaks(train, test, by)
    return train, test


def given_split(c: Comparison) -> str | None:
    """The part that the source marked a comparison with: `TRAIN`, `TEST` or `UNSEEN`; `None` without a mark."""
    part = c.metadata.get("split")
    return next((name for name in (TRAIN, TEST, UNSEEN) if name == part), None)


def never_trained_on(c: Comparison) -> bool:
    """True if the source marked a comparison as held out."""
    return given_split(c) in (TEST, UNSEEN)


def split_given(comparisons: Sequence[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    """(train, test) by the source's marks; the parts may share prompts. Raises `PrmError` if none is marked `train`."""
    train = [c for c in comparisons if given_split(c) == TRAIN]
    if not train:
        raise PrmError("no comparison has metadata 'split' with the value 'train': choose another split")
    return train, [c for c in comparisons if given_split(c) != TRAIN]


def shared_prompts(train: Sequence[Comparison], test: Sequence[Comparison]) -> tuple[int, int]:
    """(number of the test part's prompts that are also in training, number of its prompts)."""
    test_prompts, train_prompts = ({prompt_key(c.prompt) for c in part} for part in (test, train))
    return len(test_prompts & train_prompts), len(test_prompts)


def shared_conversations(train: Sequence[Comparison], test: Sequence[Comparison]) -> int:
    """Number of the test part's prompts that are not in training but share a conversation with a prompt there."""
    first = first_prompts([*train, *test])
    prompts, conversations = {prompt_key(c.prompt) for c in train}, {first[c.prompt] for c in train}
    return len({key for c in test if (key := prompt_key(c.prompt)) not in prompts and first[c.prompt] in conversations})


def folds(comparisons: Sequence[Comparison], by: SplitBy, k: int, seed: int) -> list[tuple[int, int]]:
    """For each comparison the folds, 0 to k - 1, of its two responses, which differ only by `response`.

    All comparisons of one pair, prompt, conversation, response or user share a fold; by `time`, each user's comparisons
    are cut into k stretches. Raises `PrmError` if there are fewer keys than folds.
    """
    if by == "time":
        stretches = [int(rank * k) for rank in _time_ranks(comparisons)]
        if len(set(stretches)) < min(k, 2):
            raise PrmError(f"cannot make {k} folds in time: no user has comparisons at two different times")
        return [(stretch, stretch) for stretch in stretches]
    keys = keys_of(comparisons, by)
    ranked = _ranked(keys, seed)
    if len(ranked) < k:
        lower = "lower 'search.folds', " if len(ranked) > 1 else ""
        fault = f"cannot make {k} folds of {counted(len(ranked), by)}: {lower}"
        fault += "give more data, or another 'data.holdout_by'"
        raise PrmError(fault + _joined(comparisons, by))
    fold = {key: i % k for i, key in enumerate(ranked)}
    return [(fold[c_keys[0]], fold[c_keys[-1]]) for c_keys in keys]


def check_leaks(train: Sequence[Comparison], test: Sequence[Comparison], by: SplitBy) -> None:
    """Raise `PrmError` naming a key (pair, prompt, ...) in both parts, or by `time` a user with early held-out rows.

    Prompts of one conversation are one key; by `response`, responses in the prompts of the training part leak, too.
    """
    if by == "time":
        latest: dict[str, float] = {}
        for c in train:
            latest[c.user_id] = max(when(c), latest.get(c.user_id, float("-inf")))
        early = [c for c in test if when(c) <= latest.get(c.user_id, float("-inf"))]
        if early:
            raise PrmError(f"{len(early)} held-out rows are not later than the training rows of {early[0].user_id!r}")
        return
    keys = keys_of([*train, *test], by)
    seen = {k for c_keys in keys[: len(train)] for k in c_keys} | {
        response for c in train for response in _history(c, by)
    }
    leaked = [k for c_keys in keys[len(train) :] for k in c_keys if k in seen]
    if leaked:
        example = leaked[0].replace("\x00", " | ")[:120]
        raise PrmError(f"{len(leaked)} held-out rows share a {by} with the training part, first: {example!r}")


def subsample_users(comparisons: Iterable[Comparison], judges: int, seed: int) -> list[Comparison]:
    """The comparisons of at most `judges` users per pair, drawn by user id and seed, in the given order."""
    users_of_pair: dict[str, set[str]] = defaultdict(set)
    rows = list(comparisons)
    for c in rows:
        users_of_pair[pair_key(c)].add(c.user_id)
    kept = {
        pair: set(sorted(users, key=lambda user: _rank(f"{user}\x00{pair}", seed))[:judges])
        for pair, users in users_of_pair.items()
    }
    return [c for c in rows if c.user_id in kept[pair_key(c)]]


def when(c: Comparison) -> float:
    """The time of a comparison in seconds; ISO text without a zone is UTC. Raises `PrmError` if it has none."""
    return instant(c.time, c.origin or "a comparison")


def instant(time: str | float | None, origin: str) -> float:
    """ISO text or a number as seconds. Raises `PrmError` naming `origin` for anything else."""
    if isinstance(time, int | float):
        return float(time)
    if not time:
        raise PrmError(f"{origin}: 'time' is missing, but the split is by time")
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
        late = [rank >= 1.0 - fraction - 1e-9 for rank in _time_ranks(comparisons)]
    train = [c for c, is_late in zip(comparisons, late, strict=True) if not is_late]
    return train, [c for c, is_late in zip(comparisons, late, strict=True) if is_late]


def _moments(comparisons: Sequence[Comparison]) -> list[float]:
    """The times of all comparisons. Raises `PrmError` for a missing time and for a mix of dates and numbers."""
    moments = [when(c) for c in comparisons]
    first = {isinstance(c.time, str): c.origin or "a comparison" for c in reversed(comparisons)}
    if len(first) > 1:
        raise PrmError(f"'time' is a date in {first[True]} and a number in {first[False]}: they cannot be put in order")
    return moments


def _time_ranks(comparisons: Sequence[Comparison]) -> list[float]:
    """For each comparison, the share of its user's comparisons that are earlier, in [0, 1)."""
    times: dict[str, list[float]] = defaultdict(list)
    moments = _moments(comparisons)
    for c, moment in zip(comparisons, moments, strict=True):
        times[c.user_id].append(moment)
    before: dict[tuple[str, float], float] = {}
    for user, user_times in times.items():
        for i, moment in enumerate(sorted(user_times)):
            before.setdefault((user, moment), i / len(user_times))
    return [before[c.user_id, moment] for c, moment in zip(comparisons, moments, strict=True)]


def _conversations(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """A key for each comparison; conversations whose responses were compared with each other share a key."""
    ids = []
    for c in comparisons:
        if c.conversation_id is None:
            origin = c.origin or "a comparison"
            raise PrmError(f"{origin}: 'conversation_id' is missing, but the split is by conversation")
        ids.append(c.conversation_id.split("\n"))
    joined = Groups(name for c_ids in ids for name in c_ids)
    for first, *others in ids:
        for other in others:
            joined.join(first, other)
    key = joined.first()
    return [(key[c_ids[0]],) for c_ids in ids]


def _history(c: Comparison, by: SplitBy) -> tuple[str, ...]:
    """The responses in a prompt if the split is by `response`; otherwise none."""
    return history_of(c.prompt) if by == "response" else ()


def _joined(comparisons: Iterable[Comparison], by: SplitBy) -> str:
    """A note for messages that prompts of one conversation count as one."""
    n = len({prompt_key(c.prompt) for c in comparisons}) if by == "prompt" else 0
    return f" ({n} prompts; prompts of one conversation count as one)" if n > 1 else ""


def _ranked(keys: Iterable[tuple[str, ...]], seed: int) -> list[str]:
    return sorted({key for c_keys in keys for key in c_keys}, key=lambda key: _rank(key, seed))


def _rank(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\x00{key}".encode()).hexdigest()
