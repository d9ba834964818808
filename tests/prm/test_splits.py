"""Splits: nothing lost, nothing shared, and a key's side depends on the keys and the seed alone."""

import random
from collections import Counter
from typing import get_args

import pytest

from prm.comparison import Comparison, Message
from prm.errors import PrmError
from prm.splits import KEYS, SplitBy, check_leaks, folds, split

WAYS: tuple[SplitBy, ...] = get_args(SplitBy)
N = 20  # users, prompts and pairs alike: user i and prompt j meet where i + j is even or j = i + 1


def answers(prompt: int) -> tuple[str, str]:
    return f"short {prompt}", f"rather longer {prompt}"


@pytest.fixture
def log() -> list[Comparison]:
    """Every user judges many prompts; half of the time the same two answers are chosen the other way."""
    rows = []
    for user in range(N):
        for prompt in range(N):
            if (user + prompt) % 2 == 0 or prompt == user + 1:
                a, b = answers(prompt)
                chosen, rejected = (a, b) if random.Random(user * N + prompt).random() < 0.5 else (b, a)
                rows.append(Comparison(f"user {user}", f"prompt {prompt}", chosen, rejected))
    return rows


def keys_of(rows: list[Comparison], by: SplitBy) -> set[str]:
    return {KEYS[by](c) for c in rows}


@pytest.mark.parametrize("by", WAYS)
def test_both_parts_together_are_everything_and_share_no_key(log: list[Comparison], by: SplitBy) -> None:
    train, test = split(log, by, 0.25, seed=0)
    assert Counter(train + test) == Counter(log)
    assert not keys_of(train, by) & keys_of(test, by)


@pytest.mark.parametrize("by", WAYS)
def test_parts_keep_the_order_of_the_rows(log: list[Comparison], by: SplitBy) -> None:
    for part in split(log, by, 0.25, seed=0):
        assert part == [c for c in log if c in part]


@pytest.mark.parametrize(("fraction", "held_out"), [(0.25, 5), (0.5, 10), (0.1, 2), (0.01, 1), (0.95, 19)])
@pytest.mark.parametrize("by", WAYS)
def test_the_fraction_counts_keys_and_is_at_least_one(
    log: list[Comparison], by: SplitBy, fraction: float, held_out: int
) -> None:
    train, test = split(log, by, fraction, seed=3)
    assert (len(keys_of(train, by)), len(keys_of(test, by))) == (N - held_out, held_out)


@pytest.mark.parametrize("by", WAYS)
def test_the_split_does_not_depend_on_the_order_of_the_rows(log: list[Comparison], by: SplitBy) -> None:
    shuffled = random.Random(5).sample(log, len(log))
    for one, other in zip(split(log, by, 0.3, seed=1), split(shuffled, by, 0.3, seed=1), strict=True):
        assert set(one) == set(other)


@pytest.mark.parametrize("by", WAYS)
def test_repeated_rows_do_not_move_anyone(log: list[Comparison], by: SplitBy) -> None:
    assert keys_of(split(log + log[:7] * 5, by, 0.3, seed=1)[1], by) == keys_of(split(log, by, 0.3, seed=1)[1], by)


@pytest.mark.parametrize("by", WAYS)
def test_another_seed_holds_out_others_and_the_same_seed_the_same(log: list[Comparison], by: SplitBy) -> None:
    sides = [split(log, by, 0.5, seed=seed)[1] for seed in (0, 0, 1, 2)]
    assert sides[0] == sides[1]
    assert len({frozenset(side) for side in sides}) == 3


@pytest.mark.parametrize("by", ["pair", "prompt"])
def test_the_same_answers_chosen_the_other_way_stay_together(by: SplitBy) -> None:
    rows = [Comparison("x", f"p{i}", "a", "b") for i in range(20)] + [
        Comparison("y", f"p{i}", "b", "a") for i in range(20)
    ]
    for part in split(rows, by, 0.5, seed=0):
        assert {c.prompt for c in part if c.user_id == "x"} == {c.prompt for c in part if c.user_id == "y"}
        assert len(part) == 20


def test_pairs_of_one_prompt_may_be_parted_but_prompts_may_not() -> None:
    rows = [Comparison("x", "p" if i < 10 else "q", f"a{i}", f"b{i}") for i in range(20)]
    train, test = split(rows, "pair", 0.5, seed=0)
    assert keys_of(train, "prompt") & keys_of(test, "prompt")
    train, test = split(rows, "prompt", 0.5, seed=0)
    assert {len(train), len(test)} == {10}


def test_prompts_given_as_messages_are_told_apart_by_every_turn() -> None:
    def chat(first: str, last: str) -> tuple[Message, ...]:
        return Message("user", first), Message("assistant", "well"), Message("user", last)

    same, other_start, other_end = chat("a", "z"), chat("b", "z"), chat("a", "y")
    rows = [Comparison("u", prompt, "c", "d") for prompt in (same, other_start, other_end, same)]
    assert len(keys_of(rows, "prompt")) == 3


def test_a_prompt_as_text_and_as_one_user_message_is_the_same_prompt() -> None:
    """Both read alike to the backbone (`prm.tokens`), so they may not stand on both sides."""
    rows = [Comparison("u", "hello", "a", "b"), Comparison("u", (Message("user", "hello"),), "a", "b")]
    assert len(keys_of(rows, "prompt")) == 1
    assert len(keys_of(rows, "pair")) == 1


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, 2.0])
def test_a_fraction_that_leaves_no_two_parts_is_refused(log: list[Comparison], fraction: float) -> None:
    with pytest.raises(PrmError, match="between 0 and 1"):
        split(log, "pair", fraction, seed=0)


@pytest.mark.parametrize(("rows", "fraction"), [([], 0.5), ([Comparison("u", "p", "a", "b")] * 9, 0.5)])
@pytest.mark.parametrize("by", WAYS)
def test_too_few_keys_for_two_parts_are_refused(by: SplitBy, rows: list[Comparison], fraction: float) -> None:
    with pytest.raises(PrmError, match=rf"cannot split {min(len(rows), 1)} {by}\(s\) into two parts"):
        split(rows, by, fraction, seed=0)


def test_a_fraction_that_rounds_up_to_everything_is_refused() -> None:
    rows = [Comparison(user, "p", "a", "b") for user in ("u", "v")]
    with pytest.raises(PrmError, match=r"cannot split 2 user\(s\)"):
        split(rows, "user", 0.9, seed=0)


LEAKS: dict[SplitBy, tuple[Comparison, str]] = {
    "pair": (Comparison("other", "p1", "b", "a"), "p1 | a | b"),
    "prompt": (Comparison("other", "p1", "x", "y"), "p1"),
    "user": (Comparison("ann", "p9", "x", "y"), "ann"),
}


@pytest.mark.parametrize("by", WAYS)
def test_a_leak_is_counted_and_named(by: SplitBy) -> None:
    leak, name = LEAKS[by]
    train, clean = [Comparison("ann", "p1", "a", "b")], Comparison("bob", "p2", "a", "b")
    check_leaks(train, [clean], by)
    with pytest.raises(PrmError) as caught:
        check_leaks(train, [clean, leak, leak], by)
    assert str(caught.value) == f"2 held-out rows share a {by} with the training part, first: {name!r}"


@pytest.mark.parametrize("by", WAYS)
def test_a_shared_key_of_another_kind_is_no_leak(by: SplitBy) -> None:
    for kind, (row, _) in LEAKS.items():
        if kind != by and not (kind == "pair" and by == "prompt"):  # the same pair is the same prompt
            check_leaks([Comparison("ann", "p1", "a", "b")], [row], by)


@pytest.mark.parametrize("k", [2, 3, 7, N])
@pytest.mark.parametrize("by", WAYS)
def test_folds_are_even_in_keys_and_a_key_has_one_fold(log: list[Comparison], by: SplitBy, k: int) -> None:
    fold = folds(log, by, k, seed=0)
    assert len(fold) == len(log)
    of_key = {KEYS[by](c): f for c, f in zip(log, fold, strict=True)}
    assert all(of_key[KEYS[by](c)] == f for c, f in zip(log, fold, strict=True))
    sizes = Counter(of_key.values())
    assert set(sizes) == set(range(k))
    assert max(sizes.values()) - min(sizes.values()) <= 1


@pytest.mark.parametrize("by", WAYS)
def test_folds_follow_the_seed_and_not_the_order_of_the_rows(log: list[Comparison], by: SplitBy) -> None:
    fold = dict(zip(log, folds(log, by, 3, seed=0), strict=True))
    shuffled = random.Random(1).sample(log, len(log))
    assert dict(zip(shuffled, folds(shuffled, by, 3, seed=0), strict=True)) == fold
    assert dict(zip(log, folds(log, by, 3, seed=1), strict=True)) != fold


def test_more_folds_than_keys_are_refused(log: list[Comparison]) -> None:
    with pytest.raises(PrmError, match=rf"cannot make {N + 1} folds of {N} prompt\(s\)"):
        folds(log, "prompt", N + 1, seed=0)
