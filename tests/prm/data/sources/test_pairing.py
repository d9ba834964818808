"""The rule that makes pairs of judged answers, against the plain way of going through all of them."""

import random
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.data.sources.pairing import CLOSE, EQUAL, OVER, SAME, RatedPrompt, RatedResponse, pair_up


def judgement(scores: list[float], ties: bool = False, user: str = "ann") -> RatedPrompt:
    answers = tuple(RatedResponse(f"answer {i}", score, i, f"line {i}") for i, score in enumerate(scores))
    return RatedPrompt(user, "q", answers, ties)


def pairs_of(found: RatedPrompt, gap: float, max_pairs: int) -> tuple[set[frozenset[str]], Counter[str]]:
    pairs, tally = pair_up(found, gap, max_pairs)
    made = [frozenset([c.chosen, c.rejected]) for c, _, _ in pairs]
    assert len(set(made)) == len(made)
    return set(made), tally


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("more", [0, 1, 100])
def test_with_room_for_all_every_pair_comes_out(n: int, more: int) -> None:
    made, tally = pairs_of(judgement([float(i) for i in range(n)]), 0.0, n - 1 + more)
    assert len(made) == n * (n - 1) // 2
    assert not tally


@pytest.mark.parametrize("n", [3, 4, 9, 10, 50, 51])
@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_answers_get_their_share_of_max_pairs_and_none_more(n: int, most: int) -> None:
    made, tally = pairs_of(judgement([float(i) for i in range(n)]), 0.0, most)
    assert max(Counter(text for pair in made for text in pair).values()) == min(most, n - 1)
    assert 2 * len(made) >= n * min(most, n - 1) - 2  # two that have met already may be left with room
    assert tally == +Counter({OVER: n * (n - 1) // 2 - len(made)})


def test_the_pairs_do_not_depend_on_the_order_of_the_answers() -> None:
    draw = random.Random(0)
    found = judgement([draw.randint(1, 5) for _ in range(40)])
    shuffled = RatedPrompt("ann", "q", tuple(draw.sample(found.answers, 40)))
    assert pairs_of(found, 0.0, 3) == pairs_of(shuffled, 0.0, 3)


def test_who_judges_draws_other_pairs() -> None:
    scores = [float(i) for i in range(30)]
    assert pairs_of(judgement(scores), 0.0, 2)[0] != pairs_of(judgement(scores, user="bob"), 0.0, 2)[0]


def test_pairs_grow_with_the_answers_and_so_does_the_time() -> None:
    """All alike but one: 20,000 answers have 200 million pairs, which nobody could go through here."""
    made, tally = pairs_of(judgement([0.0] * 19_999 + [1.0]), 0.0, 8)
    assert len(made) == 8
    assert tally == {EQUAL: 19_999 * 19_998 // 2, OVER: 19_999 - 8}


Scores = st.lists(st.sampled_from([0.0, 0.1, 1.0, 1.5, 2.0, 2.1, 5.0]), min_size=1, max_size=12)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(Scores, st.sampled_from([0.0, 0.05, 1.0, 1.5, 9.0]), st.integers(1, 12), st.booleans(), st.integers(0, 3))
def test_every_pair_is_kept_or_counted_under_its_reason(
    scores: list[float], gap: float, most: int, ties: bool, alike: int
) -> None:
    """The reasons, by going through all pairs; the cap, by what is left."""
    gap = 0.0 if ties else gap
    texts = [f"answer {max(i - alike, 0)}" for i in range(len(scores))]
    answers = tuple(RatedResponse(text, s, i, "") for i, (text, s) in enumerate(zip(texts, scores, strict=True)))
    pairs, tally = pair_up(RatedPrompt("u", "q", answers, ties), gap, most)
    expected: Counter[str] = Counter()
    too_close = CLOSE if gap else EQUAL
    possible = 0
    for a, b in combinations(answers, 2):
        distance = abs(a.score - b.score)
        if a.text == b.text:
            expected[SAME] += 1
        elif (distance == 0 and not ties) or distance < gap - 1e-6:
            expected[too_close] += 1
        else:
            possible += 1
    assert (tally[SAME], tally[too_close]) == (expected[SAME], expected[too_close])
    assert tally[OVER] + len(pairs) == possible
    times = Counter(row for _, better, worse in pairs for row in (better.row, worse.row))
    assert all(count <= most for count in times.values())
    for comparison, better, worse in pairs:
        assert better.score >= worse.score
        assert comparison.is_tie == (better.score == worse.score)
    if tally[OVER]:  # maximal: of any two answers that could still be a pair, one is full
        made = {frozenset([better.row, worse.row]) for _, better, worse in pairs}
        for a, b in combinations(answers, 2):
            open_pair = a.text != b.text and frozenset([a.row, b.row]) not in made
            far = abs(a.score - b.score) >= max(gap - 1e-6, 0.0 if ties else 1e-12)
            assert not (open_pair and far) or times[a.row] == most or times[b.row] == most
