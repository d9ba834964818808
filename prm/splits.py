"""Seeded splits of comparisons, and the check that nothing leaks from one part to the other."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

from prm.comparison import Comparison, prompt_key
from prm.errors import PrmError

SplitBy = Literal["pair", "prompt", "user"]


def pair_key(c: Comparison) -> str:
    """The same for everyone who judged these two answers to this prompt, whichever they chose."""
    return "\x00".join([prompt_key(c.prompt), *sorted([c.chosen, c.rejected])])


KEYS: dict[str, Callable[[Comparison], str]] = {
    "pair": pair_key,
    "prompt": lambda c: prompt_key(c.prompt),
    "user": lambda c: c.user_id,
}


def split(
    comparisons: Sequence[Comparison], by: SplitBy, test_fraction: float, seed: int
) -> tuple[list[Comparison], list[Comparison]]:
    """(train, test), where all judgements of one pair, prompt or user fall on the same side.

    A key's side depends on the set of keys and the seed alone, not on the order of the rows. About
    `test_fraction` of the keys, at least one, is held out. Raises `PrmError` where a part would be empty.
    """
    if not 0.0 < test_fraction < 1.0:
        raise PrmError(f"the held-out fraction must lie between 0 and 1, got {test_fraction}")
    key = KEYS[by]
    ranked = sorted({key(c) for c in comparisons}, key=lambda k: _rank(k, seed))
    n_test = max(1, round(test_fraction * len(ranked)))
    if n_test >= len(ranked):
        raise PrmError(f"cannot split {len(ranked)} {by}(s) into two parts: give more data or another split")
    held_out = set(ranked[:n_test])
    train = [c for c in comparisons if key(c) not in held_out]
    test = [c for c in comparisons if key(c) in held_out]
    check_leaks(train, test, by)
    return train, test


def folds(comparisons: Sequence[Comparison], by: SplitBy, k: int, seed: int) -> list[int]:
    """For each comparison its fold, 0 to k - 1; all of one pair, prompt or user share theirs.

    Raises `PrmError` where there are fewer keys than folds.
    """
    key = KEYS[by]
    ranked = sorted({key(c) for c in comparisons}, key=lambda name: _rank(name, seed))
    if len(ranked) < k:
        raise PrmError(f"cannot make {k} folds of {len(ranked)} {by}(s): lower 'search.folds' or give more data")
    fold = {name: i % k for i, name in enumerate(ranked)}
    return [fold[key(c)] for c in comparisons]


def check_leaks(train: Sequence[Comparison], test: Sequence[Comparison], by: SplitBy) -> None:
    """Raise `PrmError` naming a pair, prompt or user that stands on both sides."""
    key = KEYS[by]
    seen = {key(c) for c in train}
    leaked = [c for c in test if key(c) in seen]
    if leaked:
        example = key(leaked[0]).replace("\x00", " | ")[:120]
        raise PrmError(f"{len(leaked)} held-out rows share a {by} with the training part, first: {example!r}")


def _rank(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\x00{key}".encode()).hexdigest()
