"""The plan: a tree by hand, every token once, and packs that lose nothing whatever the budget."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.attention import prefix_tree as plans
from prm.attention.prefix_tree import Pack, Plan, make_plan

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=30)
SEQUENCES = st.lists(IDS, min_size=1, max_size=12)
BEGIN = [9] * 10


def seen(plan: Plan, max_tokens: int) -> dict[int, list[int]]:
    """Which tokens each token attends to, as the packs say, in the plan's numbers."""
    found: dict[int, list[int]] = {}
    carried: list[int] = []
    for pack in plan.packs(max_tokens):
        assert len(carried) == pack.carried
        numbers = [*carried, *range(pack.start, pack.stop)]
        for token, keys in asked_of(pack, numbers):
            found.setdefault(token, []).extend(keys)
        carried = [numbers[i] for i in pack.keep]
    return found


def asked_of(pack: Pack, numbers: list[int]) -> list[tuple[int, list[int]]]:
    out = []
    for call in (*pack.within, *pack.above):
        real = call.queries[call.queries >= 0]
        assert len(real) == len(set(real.tolist()))  # results of one call are written at once
    for causal, calls in ((True, pack.within), (False, pack.above)):
        for call in calls:
            for queries, keys in zip(call.queries, call.keys, strict=True):
                keys = keys[keys >= 0].tolist()
                for i, query in enumerate(queries[queries >= 0].tolist()):
                    out.append((pack.start + query, [numbers[k] for k in (keys[: i + 1] if causal else keys)]))
    return out


def test_a_tree_by_hand() -> None:
    """Two answers to one prompt, one of them twice, and a text of its own."""
    plan = make_plan([[*BEGIN, 1, 2], [*BEGIN, 3], [7, 8], [*BEGIN, 1, 2]])
    assert plan.ids.tolist() == [7, 8, *BEGIN, 1, 2, 3]
    assert plan.positions.tolist() == [0, 1, *range(10), 10, 11, 10]
    assert plan.before.tolist() == [-1, 0, -1, *range(2, 11), 11, 12, 11]
    assert plan.last.tolist() == [13, 14, 1, 13]
    assert plan.tokens(1, 8, 11).tolist() == [10, 11, 14]
    assert [(p.start, p.stop, p.carried, p.keep.tolist()) for p in plan.packs(12)] == [
        (0, 12, 0, list(range(2, 12))),
        (12, 15, 10, []),
    ]


def test_what_saves_little_is_no_branch() -> None:
    few = make_plan([[1, 2, 3], [1, 2, 4]])
    assert few.ids.tolist() == [1, 2, 3, 1, 2, 4]
    many = make_plan([[1, 2, 3 + i] for i in range(5)])  # two tokens, saved four times
    assert many.ids.tolist() == [1, 2, 3, 4, 5, 6, 7]


@settings(deadline=None, max_examples=60)
@given(SEQUENCES, st.integers(1, 40), st.sampled_from([1, 8]))
def test_each_token_sees_its_own_past_once(sequences: list[list[int]], max_tokens: int, worth: int) -> None:
    """Whatever is shared and wherever the packs are cut: exactly what causal attention over its sequence sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "_MIN_SAVED_TOKENS", worth)
        plan = make_plan(sequences)
    packs = list(plan.packs(max_tokens))
    assert [p.start for p in packs] == [0, *(p.stop for p in packs[:-1])]
    assert packs[-1].stop == len(plan.ids)
    found = seen(plan, max_tokens)
    for i, ids in enumerate(sequences):
        tokens = plan.tokens(i, 0, len(ids)).tolist()
        assert plan.ids[tokens].tolist() == ids
        assert plan.positions[tokens].tolist() == list(range(len(ids)))
        assert tokens[-1] == plan.last[i]
        assert plan.before[tokens].tolist() == [-1, *tokens[:-1]]
        for position, token in enumerate(tokens):
            assert sorted(found[token]) == tokens[: position + 1]
        assert plan.last[i] == plan.last[sequences.index(ids)]  # equal ones are one
    if worth == 1:
        assert len(plan.ids) == len({tuple(ids[: k + 1]) for ids in sequences for k in range(len(ids))})


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(1, 600))
def test_packs_keep_to_the_budget(lengths: list[int], max_tokens: int) -> None:
    plan = make_plan([[i] * n for i, n in enumerate(lengths)])
    packs = list(plan.packs(max_tokens))
    for pack in packs:
        assert pack.stop - pack.start <= max_tokens or len(pack.within[0].queries) == 1
    for a, b in pairwise(packs):  # as full as whole spans allow
        length = plan.length[np.searchsorted(plan.first, b.start)]
        assert a.stop - a.start + length > max_tokens


def test_padding_of_attention_is_bounded() -> None:
    """Rows alike in size go together; one long row is not what all short ones are padded to."""
    plan = make_plan([[i] * n for i, n in enumerate([400, *[10] * 50, 12, 11])])
    (pack,) = plan.packs(4096)
    assert [call.queries.shape for call in pack.within] == [(1, 400), (52, 12)]


def test_many_nested_beginnings() -> None:
    """Each sequence begins the next: deeper than Python's own stack would go."""
    text = list(range(9000))
    plan = make_plan([text[: 8 * (i + 1)] for i in range(1100)])
    assert len(plan.ids) == 8800
    assert len(plan.first) == 1100
