"""Splits: nothing lost, nothing shared, and a key's side depends on the keys and the seed alone."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from prm.data.comparison import Comparison, Message
from prm.data.splits import (
    SplitBy,
    check_leaks,
    folds,
    given_split,
    instant,
    keys_of,
    never_trained_on,
    pair_key,
    shared_conversations,
    shared_prompts,
    split,
    split_given,
    subsample_users,
    training_holdout,
    when,
)
from prm.errors import PrmError

WAYS: tuple[SplitBy, ...] = get_args(SplitBy)
# a comparison has one key, so no comparison falls between
WHOLE: tuple[SplitBy, ...] = ("pair", "prompt", "conversation", "user")
N = 20  # users, prompts and pairs alike: user i and prompt j meet where i + j is even or j = i + 1


def answers(prompt: int) -> tuple[str, str]:
    return f"short {prompt}", f"rather longer {prompt}"


def names_in(rows: list[Comparison], by: SplitBy) -> set[str]:
    return {key for own in keys_of(rows, by) for key in own}


@pytest.fixture
def log() -> list[Comparison]:
    """Every user judges many prompts; half of the time the same two answers are chosen the other way."""
    rows = []
    for user in range(N):
        for prompt in range(N):
            if (user + prompt) % 2 == 0 or prompt == user + 1:
                a, b = answers(prompt)
                chosen, rejected = (a, b) if random.Random(user * N + prompt).random() < 0.5 else (b, a)
                where = f"talk {(user + prompt) // 2}"
                rows.append(Comparison(f"user {user}", f"prompt {prompt}", chosen, rejected, conversation_id=where))
    return rows


def test_all_ways_to_split_are_tested() -> None:
    assert set(WAYS) == {*WHOLE, "response", "time"}


@pytest.mark.parametrize("by", WHOLE)
def test_both_parts_together_are_everything_and_share_no_key(log: list[Comparison], by: SplitBy) -> None:
    train, test = split(log, by, 0.25, seed=0)
    assert Counter(train + test) == Counter(log)
    assert not names_in(train, by) & names_in(test, by)


@pytest.mark.parametrize("by", [*WHOLE, "response"])
def test_parts_keep_the_order_of_the_rows(log: list[Comparison], by: SplitBy) -> None:
    for part in split(log, by, 0.25, seed=0):
        assert part == [c for c in log if c in part]


@pytest.mark.parametrize(("fraction", "held_out"), [(0.25, 5), (0.5, 10), (0.1, 2), (0.01, 1), (0.95, 19)])
@pytest.mark.parametrize("by", WHOLE)
def test_the_fraction_counts_keys_and_is_at_least_one(
    log: list[Comparison], by: SplitBy, fraction: float, held_out: int
) -> None:
    train, test = split(log, by, fraction, seed=3)
    assert (len(names_in(train, by)), len(names_in(test, by))) == (N - held_out, held_out)


@pytest.mark.parametrize("by", [*WHOLE, "response"])
def test_the_split_does_not_depend_on_the_order_of_the_rows(log: list[Comparison], by: SplitBy) -> None:
    shuffled = random.Random(5).sample(log, len(log))
    for one, other in zip(split(log, by, 0.3, seed=1), split(shuffled, by, 0.3, seed=1), strict=True):
        assert set(one) == set(other)


@pytest.mark.parametrize("by", [*WHOLE, "response"])
def test_repeated_rows_do_not_move_anyone(log: list[Comparison], by: SplitBy) -> None:
    assert names_in(split(log + log[:7] * 5, by, 0.3, seed=1)[1], by) == names_in(split(log, by, 0.3, seed=1)[1], by)


@pytest.mark.parametrize("by", [*WHOLE, "response"])
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
    assert names_in(train, "prompt") & names_in(test, "prompt")
    train, test = split(rows, "prompt", 0.5, seed=0)
    assert {len(train), len(test)} == {10}


def test_prompts_given_as_messages_differ_by_every_turn() -> None:
    def chat(first: str, last: str) -> tuple[Message, ...]:
        return Message("user", first), Message("assistant", "well"), Message("user", last)

    same, other_start, other_end = chat("a", "z"), chat("b", "z"), chat("a", "y")
    rows = [Comparison("u", prompt, "c", "d") for prompt in (same, other_start, other_end, same)]
    assert len(names_in(rows, "prompt")) == 3


def test_a_prompt_as_text_and_as_one_user_message_is_the_same_prompt() -> None:
    """Both read alike to the backbone (`prm.data.encoding`), so they may not stand on both sides."""
    rows = [Comparison("u", "hello", "a", "b"), Comparison("u", (Message("user", "hello"),), "a", "b")]
    assert len(names_in(rows, "prompt")) == 1
    assert len(names_in(rows, "pair")) == 1


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, 2.0])
def test_a_fraction_that_leaves_no_two_parts_is_refused(log: list[Comparison], fraction: float) -> None:
    with pytest.raises(PrmError, match="between 0 and 1"):
        split(log, "pair", fraction, seed=0)


@pytest.mark.parametrize(
    ("rows", "fraction"), [([], 0.5), ([Comparison("u", "p", "a", "b", conversation_id="t")] * 9, 0.5)]
)
@pytest.mark.parametrize("by", WHOLE)
def test_too_few_keys_for_two_parts_are_refused(by: SplitBy, rows: list[Comparison], fraction: float) -> None:
    with pytest.raises(PrmError, match=rf"{min(len(rows), 1)} {by}"):
        split(rows, by, fraction, seed=0)


def test_a_fraction_that_rounds_up_to_everything_is_refused() -> None:
    rows = [Comparison(user, "p", "a", "b") for user in ("u", "v")]
    with pytest.raises(PrmError, match="2 user"):
        split(rows, "user", 0.9, seed=0)


LEAKS: dict[SplitBy, tuple[Comparison, str]] = {
    "pair": (Comparison("other", "p1", "b", "a"), "p1 | a | b"),
    "prompt": (Comparison("other", "p1", "x", "y"), "p1"),
    "response": (Comparison("other", "p9", "x", "b"), "b"),
    "user": (Comparison("ann", "p9", "x", "y"), "ann"),
}


@pytest.mark.parametrize("by", LEAKS)
def test_a_leak_is_counted_and_named(by: SplitBy) -> None:
    leak, name = LEAKS[by]
    train, clean = [Comparison("ann", "p1", "a", "b")], Comparison("bob", "p2", "c", "d")
    check_leaks(train, [clean], by)
    with pytest.raises(PrmError) as caught:
        check_leaks(train, [clean, leak, leak], by)
    rows = 4 if (by, leak.chosen) == ("response", "b") else 2
    assert str(caught.value) == f"{rows} held-out rows share a {by} with the training part, first: {name!r}"


@pytest.mark.parametrize("by", LEAKS)
def test_a_shared_key_of_another_kind_is_no_leak(by: SplitBy) -> None:
    shares = {"pair": {"pair", "prompt", "response"}}  # the same pair is the same prompt and the same answers
    for kind, (row, _) in LEAKS.items():
        if by not in shares.get(kind, {kind}):
            check_leaks([Comparison("ann", "p1", "a", "b")], [row], by)


def test_a_held_out_answer_leaks_from_either_side() -> None:
    train = [Comparison("u", "p", "a", "b")]
    for chosen, rejected in (("x", "a"), ("a", "x"), ("x", "b"), ("b", "x")):
        with pytest.raises(PrmError, match=r"^1 .*response"):
            check_leaks(train, [Comparison("v", "q", chosen, rejected)], "response")


@pytest.mark.parametrize("k", [2, 3, 7, N])
@pytest.mark.parametrize("by", WHOLE)
def test_folds_are_even_in_keys_and_a_key_has_one_fold(log: list[Comparison], by: SplitBy, k: int) -> None:
    fold = folds(log, by, k, seed=0)
    assert len(fold) == len(log)
    keys = keys_of(log, by)
    of_key = dict(zip(keys, fold, strict=True))
    assert all(of_key[key] == f for key, f in zip(keys, fold, strict=True))
    assert all(first == second for first, second in fold)
    sizes = Counter(first for first, _ in of_key.values())
    assert set(sizes) == set(range(k))
    assert max(sizes.values()) - min(sizes.values()) <= 1


@pytest.mark.parametrize("by", [*WHOLE, "response"])
def test_folds_follow_the_seed_and_not_the_order_of_the_rows(log: list[Comparison], by: SplitBy) -> None:
    fold = dict(zip(log, folds(log, by, 3, seed=0), strict=True))
    shuffled = random.Random(1).sample(log, len(log))
    assert dict(zip(shuffled, folds(shuffled, by, 3, seed=0), strict=True)) == fold
    assert dict(zip(log, folds(log, by, 3, seed=1), strict=True)) != fold


def test_more_folds_than_keys_are_refused(log: list[Comparison]) -> None:
    with pytest.raises(PrmError, match=rf"{N + 1} folds of {N} prompt"):
        folds(log, "prompt", N + 1, seed=0)


ANSWERS = "abcdefgh"


@pytest.fixture
def tournament() -> list[Comparison]:
    """Every two of eight answers, judged by two people: 56 comparisons."""
    pairs = [(a, b) for a in ANSWERS for b in ANSWERS if a < b]
    return [Comparison(user, "p", *pair) for pair in pairs for user in ("ann", "bob")]


@pytest.mark.parametrize(("fraction", "n"), [(0.25, 2), (0.5, 4), (0.75, 6)])
def test_held_out_answers_meet_each_other_and_the_rest_meet_each_other(
    tournament: list[Comparison], fraction: float, n: int
) -> None:
    """n of 8 answers held out: n(n-1)/2 pairs to test on, (8-n)(7-n)/2 to learn from, n(8-n) in neither part."""
    train, test = split(tournament, "response", fraction, seed=0)
    assert (len(names_in(test, "response")), len(names_in(train, "response"))) == (n, 8 - n)
    assert not names_in(train, "response") & names_in(test, "response")
    assert (len(test), len(train)) == (n * (n - 1), (8 - n) * (7 - n))


def test_answers_that_never_meet_within_a_part_leave_it_empty() -> None:
    """Each answer stands in one comparison: one held-out answer has nobody to meet."""
    rows = [Comparison("u", "p", f"a{i}", f"b{i}") for i in range(10)]
    with pytest.raises(PrmError, match=r"held-out.* response"):
        split(rows, "response", 0.05, seed=0)
    with pytest.raises(PrmError, match=r"training.* response"):
        split(rows, "response", 0.94, seed=0)


def test_by_response_a_comparison_between_two_folds_says_so(tournament: list[Comparison]) -> None:
    """Eight answers in four folds: of each fold two, that meet once per judge; all else lies between two folds."""
    found = folds(tournament, "response", 4, seed=0)
    of_answer: dict[str, int] = {}
    for c, pair in zip(tournament, found, strict=True):
        for answer, fold in zip((c.chosen, c.rejected), pair, strict=True):
            assert of_answer.setdefault(answer, fold) == fold
    assert Counter(of_answer.values()) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert Counter(first for first, second in found if first == second) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert sum(first != second for first, second in found) == 48


def at(time: Any, user: str = "ann", prompt: str = "") -> Comparison:
    return Comparison(user, prompt or f"p {time}", "a", "b", time=time, origin=f"log.jsonl, line {time}")


def times(rows: list[Comparison]) -> list[Any]:
    return [c.time for c in rows]


@pytest.mark.parametrize(
    ("fraction", "late"), [(0.25, [4]), (0.5, [3, 4]), (0.75, [2, 3, 4]), (0.3, [4]), (0.2, []), (0.99, [2, 3, 4])]
)
def test_the_latest_share_of_each_persons_judgements_is_held_out(fraction: float, late: list[int]) -> None:
    """Ann at 1 to 4, Bob a thousand later: each is cut for himself; the share is rounded down."""
    rows = [
        at(t, user) for user, shift in (("ann", 0), ("bob", 1000)) for t in (2 + shift, 4 + shift, 1 + shift, 3 + shift)
    ]
    if not late:
        with pytest.raises(PrmError, match=r"held-out.* time"):
            split(rows, "time", fraction, seed=0)
        return
    train, test = split(rows, "time", fraction, seed=0)
    assert sorted(times(test)) == [*late, *(t + 1000 for t in late)]
    assert Counter(train + test) == Counter(rows)
    assert train == [c for c in rows if c in train]


def test_what_happened_at_the_same_time_stays_together() -> None:
    """1, 2, 2, 2: the second half begins within the twos, so none of them is late."""
    rows = [at(1), *(at(2, prompt=f"p{i}") for i in range(3)), *(at(t, "bob") for t in range(4))]
    _, test = split(rows, "time", 0.5, seed=0)
    assert times([c for c in test if c.user_id == "ann"]) == []
    assert times([c for c in test if c.user_id == "bob"]) == [2, 3]
    _, test = split(rows, "time", 0.75, seed=0)
    assert times([c for c in test if c.user_id == "ann"]) == [2, 2, 2]


DATES = ["2024-05-31T23:59:59", "2024-06-01", "2024-06-01T01:00:00+02:00", "2024-06-01T00:00:00Z", "2024-06-02"]


def test_from_a_date_on_everything_is_held_out_and_text_without_zone_is_utc() -> None:
    """One in the morning at +02:00 is still May in UTC."""
    train, test = split([at(t) for t in DATES], "time", 0.0, seed=0, test_from="2024-06-01")
    assert (times(train), times(test)) == ([DATES[0], DATES[2]], [DATES[1], DATES[3], DATES[4]])
    train, test = split([at(t) for t in DATES], "time", 0.0, seed=0, test_from="2024-06-01T00:00:01")
    assert times(test) == [DATES[4]]


def test_from_a_number_on_everything_is_held_out() -> None:
    train, test = split([at(t, user) for user in "uv" for t in (1, 2.5, 3)], "time", 0.0, seed=0, test_from=2.5)
    assert (times(train), times(test)) == ([1, 1], [2.5, 3, 2.5, 3])


@pytest.mark.parametrize("test_from", ["2030-01-01", "2020-01-01"])
def test_a_date_that_leaves_no_two_parts_is_refused(test_from: str) -> None:
    with pytest.raises(PrmError, match=" time "):
        split([at(t) for t in DATES], "time", 0.0, seed=0, test_from=test_from)


@pytest.mark.parametrize("others", [1, "2024-01-01"])
@pytest.mark.parametrize("test_from", [None, "2024-06-01", 1.0])
def test_a_missing_time_is_refused_by_its_origin(others: Any, test_from: Any) -> None:
    rows = [at(others), at(None)]
    with pytest.raises(PrmError, match=r"^log\.jsonl, line None: 'time'"):
        split(rows, "time", 0.5, seed=0, test_from=test_from)
    with pytest.raises(PrmError, match=r"log\.jsonl, line None: 'time'"):
        folds(rows, "time", 2, seed=0)


def test_dates_and_numbers_cannot_be_put_in_order() -> None:
    rows = [at(1), at("2024-01-01")]
    for cut in (lambda: split(rows, "time", 0.5, seed=0), lambda: folds(rows, "time", 2, seed=0)):
        with pytest.raises(PrmError) as caught:
            cut()
        assert "'time' is a date in log.jsonl, line 2024-01-01 and a number in log.jsonl, line 1" in str(caught.value)
    for given, test_from in ((1, "2024-01-01"), ("2024-01-01", 1.0)):
        with pytest.raises(PrmError, match=r"'data\.test_from'"):
            split([at(given)] * 2, "time", 0.0, seed=0, test_from=test_from)


def test_what_is_no_date_is_refused() -> None:
    with pytest.raises(PrmError, match="'yesterday'"):
        at("yesterday")
    with pytest.raises(PrmError, match=r"'data\.test_from'.*'June'"):
        split([at("2024-01-01")], "time", 0.0, seed=0, test_from="June")


@pytest.fixture
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock is not in UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_elsewhere")
def test_instants_by_hand_wherever_the_machine_stands() -> None:
    assert instant("1970-01-02", "") == instant("1970-01-02T00:00:00Z", "") == 86_400.0
    assert instant("1970-01-01T01:00:00+01:00", "") == 0.0
    assert instant("1970-01-01T00:00:00.5", "") == 0.5
    assert instant(12, "") == 12.0
    assert when(at(3)) == 3.0


def test_a_leak_from_the_future_is_counted_and_named() -> None:
    """Ann is tested at 2 and 3 but learnt from up to 3; Bob's times are his own."""
    train = [at(1), at(3), at(1, "bob")]
    check_leaks(train, [at(4), at(2, "bob"), at(0, "new")], "time")
    with pytest.raises(PrmError, match=r"^2 .*'ann'"):
        check_leaks(train, [at(4), at(2), at(3, prompt="x"), at(2, "bob")], "time")


def test_folds_in_time_are_stretches_of_each_person() -> None:
    rows = [at(t, user) for user in ("ann", "bob") for t in (5, 1, 3, 2, 4, 6)]
    assert folds(rows, "time", 3, seed=0) == [(f, f) for f in (2, 0, 1, 0, 1, 2)] * 2
    same = [at(t, prompt=str(i)) for i, t in enumerate((1, 1, 1, 2))]
    assert folds(same, "time", 2, seed=0) == [(0, 0)] * 3 + [(1, 1)]


def test_folds_in_time_need_two_times_of_somebody() -> None:
    with pytest.raises(PrmError, match="5 folds in time"):
        folds([at(t, f"user {t}") for t in range(9)], "time", 5, seed=0)


def test_of_each_pair_a_few_peoples_judgements_are_kept_in_order() -> None:
    rows = [Comparison(f"u{i}", "p", *("ab" if i % 2 else "ba")) for i in range(9)]
    rows += [Comparison("u0", "q", "a", "b"), rows[3], Comparison("u1", "p", "a", "c")]
    kept = subsample_users(rows, 4, seed=0)
    assert kept == [c for c in rows if c in kept]
    people = {c.user_id for c in kept if pair_key(c) == pair_key(rows[0])}
    assert len(people) == 4
    assert [c for c in kept if c.user_id in people and pair_key(c) == pair_key(rows[0])] == [
        c for c in rows if c.user_id in people and pair_key(c) == pair_key(rows[0])
    ]  # all that they said of it
    assert {rows[9], rows[11]} <= set(kept)
    assert subsample_users(rows, 99, seed=0) == rows


def test_who_is_kept_depends_on_the_seed_and_not_on_the_order() -> None:
    rows = [Comparison(f"u{i}", f"p{j}", "a", "b") for i in range(9) for j in range(5)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert set(subsample_users(rows, 2, seed=0)) == set(subsample_users(shuffled, 2, seed=0))
    assert set(subsample_users(rows, 2, seed=0)) != set(subsample_users(rows, 2, seed=1))
    assert len({c.user_id for c in subsample_users(rows, 2, seed=0)}) > 2  # other people for other pairs


PARTS = ("train", "test", "unseen", None, "Train", 3, ["train"])


def test_marks_are_three_words_and_anything_else_says_nothing() -> None:
    rows = [Comparison("u", f"p{i}", "a", "b", metadata={"split": part}) for i, part in enumerate(PARTS)]
    rows.append(Comparison("u", "p", "a", "b"))
    assert [given_split(c) for c in rows] == ["train", "test", "unseen", *[None] * 5]
    assert [never_trained_on(c) for c in rows] == [False, True, True, *[False] * 5]
    assert split_given(rows) == (rows[:1], rows[1:])
    with pytest.raises(PrmError, match=r"'split'.*'train'"):
        split_given(rows[1:])


def test_shared_prompts_are_counted_once_whatever_their_form() -> None:
    """A single message of the user is the same prompt as its text."""
    train = [Comparison("u", prompt, "a", "b") for prompt in ("p", "q", "q")]
    test = [Comparison("v", prompt, "a", "b") for prompt in ((Message("user", "p"),), "p", "r", "r", "s")]
    assert shared_prompts(train, test) == (1, 3)
    assert shared_prompts([], []) == (0, 0)


def talk(user: str, opening: str, *turns: tuple[str, str]) -> list[Comparison]:
    """A conversation of turns (chosen answer, what the user says next), each turn judged."""
    rows, said = [], [Message("user", opening)]
    for chosen, following in turns:
        rows.append(Comparison(user, tuple(said), chosen, f"not {chosen}", conversation_id=f"{user} {opening}"))
        said += [Message("assistant", chosen), Message("user", following)]
    return rows


@pytest.fixture
def talks() -> list[Comparison]:
    """Twelve conversations of three turns."""
    return [
        c for i in range(12) for c in talk(f"u{i % 3}", f"q{i}", (f"a{i}", "and?"), (f"b{i}", "so?"), (f"c{i}", ""))
    ]


def stands_in(c: Comparison) -> set[str]:
    return {m.content for m in c.prompt if isinstance(m, Message)}


@pytest.mark.parametrize("by", ["prompt", "conversation", "response"])
@pytest.mark.parametrize("seed", range(5))
def test_no_held_out_answer_stands_in_a_prompt_to_learn_from(talks: list[Comparison], by: SplitBy, seed: int) -> None:
    train, test = split(talks, by, 0.25, seed)
    read = {text for c in train for text in stands_in(c)}
    assert test
    assert not [c for c in test if c.chosen in read]
    if by != "response":
        assert Counter(train + test) == Counter(talks)
        assert len(test) == 9  # a quarter of twelve conversations, whole


@pytest.mark.parametrize("by", ["prompt", "conversation"])
def test_a_conversation_is_in_one_fold(talks: list[Comparison], by: SplitBy) -> None:
    fold = folds(talks, by, 4, seed=0)
    assert [fold[i] for i in range(0, 36, 3)] == [fold[i] for i in range(2, 36, 3)]
    assert Counter(fold) == {(f, f): 9 for f in range(4)}


def test_a_turn_that_goes_on_from_a_held_out_one_is_a_leak(talks: list[Comparison]) -> None:
    check_leaks(talks[3:], talks[:3], "prompt")
    for train, test in ((talks[2:], talks[:2]), (talks[:1], talks[1:3]), ([talks[2]], [talks[0]])):
        with pytest.raises(PrmError, match=r"prompt.*'q0'"):
            check_leaks(train, test, "prompt")
    with pytest.raises(PrmError, match=r"^1 .*response.*'a0'"):
        check_leaks([talks[1]], [talks[0]], "response")
    assert shared_conversations([talks[1]], [talks[0], talks[2], talks[3]]) == 2
    assert shared_conversations(talks, talks) == 0  # these stand there themselves


def test_a_conversation_without_an_id_is_refused_by_its_origin(talks: list[Comparison]) -> None:
    nameless = Comparison("u", "p", "a", "b", origin="log.jsonl, line 7")
    with pytest.raises(PrmError, match=r"^log\.jsonl, line 7: 'conversation_id'"):
        split([*talks, nameless], "conversation", 0.5, seed=0)


def test_conversations_whose_answers_were_compared_are_one() -> None:
    rows = [Comparison("u", f"p{i}", "a", "b", conversation_id=name) for i, name in enumerate(["x", "x\ny", "y", "z"])]
    assert [key for (key,) in keys_of(rows, "conversation")] == ["x", "x", "x", "z"]


def test_what_is_given_is_trained_by_conversation_where_all_have_one(talks: list[Comparison]) -> None:
    assert training_holdout("given", talks) == "conversation"
    assert training_holdout("given", [*talks, Comparison("u", "p", "a", "b")]) == "prompt"
    assert training_holdout("user", talks) == "user"
