"""The share of the oracle headroom that the picks of best-of-N arms capture, by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from policy.compare.config import CompareConfig, JudgeSpec
from policy.compare.headroom import Headroom, headrooms
from policy.compare.judging import open_gold
from policy.compare.measure import Answered, AnswerRow, Candidate
from policy.compare.report_text import headroom_section
from prm.data.comparison import Comparison
from prm.metrics import Array

CASES = [
    Comparison(user, "q?", "x", "y", metadata={"taste": taste}) for user, taste in (("a", "longer"), ("b", "shorter"))
]
POOL = ["one", "one two", "one two three"]


def candidate(text: str, personal: float | None, generic: float | None, uniform: float | None) -> Candidate:
    return {"response": text, "personal": personal, "generic": generic, "uniform": uniform}


def arm(pools: Sequence[list[Candidate]], n: int = 3) -> Answered:
    rows: list[AnswerRow] = [{"response": pool[0]["response"], "surprise": 1.0, "pool": pool} for pool in pools]
    return Answered(rows, np.zeros(len(rows)), "best of", n, 0.0, 0.0)


def by_words(cases: Sequence[Comparison], responses: Sequence[str]) -> Array:
    """a likes long responses twice as much as b likes short ones; nobody can rate nothing."""
    weights = {"a": 2.0, "b": -1.0}
    words = [len(response.split()) or np.nan for response in responses]
    return np.array([weights[c.user_id] for c in cases]) * words


def share(found: Headroom) -> dict[str, float]:
    assert all(e is not None for e in found.share.values())
    return {name: e.value for name, e in found.share.items() if e is not None}


def test_share_by_hand() -> None:
    """Of a's rewards 2, 4, 6 the oracle gains 2 over a random response, of b's -1, -2, -3 1: 1.5 on average."""
    same = [candidate(text, r, g, u) for text, r, g, u in zip(POOL, (1, 3, 2), (0, 0, 0), (9, 1, 5), strict=True)]
    found = headrooms({"best of 3": arm([same, same]), "SFT": arm([same, same], 0)}, by_words, CASES)
    assert list(found) == ["best of 3"]
    one = found["best of 3"]
    assert one.headroom.value == pytest.approx(1.5)
    assert share(one) == {
        "personal": pytest.approx(0.0),  # both get the middle one
        "generic user": pytest.approx(0.0),  # all alike: any
        "uniform": pytest.approx((-2 + 1) / 2 / 1.5),
        "longest": pytest.approx((2 - 1) / 2 / 1.5),
        "random": pytest.approx(0.0),
        "oracle": 1.0,
    }
    longest, oracle = one.share["longest"], one.share["oracle"]
    assert longest is not None
    assert oracle is not None
    assert (longest.low, longest.high) == (-1.0, 1.0)  # b's own, and a's
    assert (oracle.low, oracle.high) == (1.0, 1.0)


def test_ties_are_drawn_by_lot_and_an_empty_response_is_the_worst() -> None:
    """Two equal best by the reward: half of each; a's judge rewards 2, 4 and, of the empty one, 2."""
    pool = [candidate(text, r, 0, 0) for text, r in (("one", 5.0), ("one two", 5.0), ("", None))]
    found = headrooms({"x 3": arm([pool, pool])}, by_words, CASES)["x 3"]
    mean, lot = 8 / 3, 3.0
    assert found.headroom.value == pytest.approx(((4 - mean) + (-1 + 5 / 3)) / 2)
    assert share(found)["personal"] == pytest.approx(((lot - mean) + (-1.5 + 5 / 3)) / 2 / found.headroom.value)


def test_neither_order_nor_scale_nor_origin_matter() -> None:
    draw = np.random.default_rng(0)
    cases = [Comparison(user, f"{q}?", "x", "y") for q in range(4) for user in "abc"]
    pools = [[candidate(f"{i} {j} " * (j + 1), *draw.normal(size=3)) for j in range(5)] for i in range(len(cases))]
    worth = {c["response"]: float(draw.normal()) for pool in pools for c in pool}

    def gold(_: Sequence[Comparison], responses: Sequence[str]) -> Array:
        return np.array([worth[response] for response in responses])

    first = headrooms({"x 5": arm(pools, 5)}, gold, cases)["x 5"]
    again = headrooms({"x 5": arm([pool[::-1] for pool in pools], 5)}, lambda c, r: 7.0 * gold(c, r) + 3.0, cases)[
        "x 5"
    ]
    assert share(first) == pytest.approx(share(again))
    assert again.headroom.value == pytest.approx(7.0 * first.headroom.value)
    assert 0.0 < first.headroom.low < first.headroom.value
    assert first.share["longest"] is not None
    assert first.share["longest"].low < first.share["longest"].value < first.share["longest"].high


def test_without_headroom_there_is_no_number() -> None:
    """Equal rewards, nothing but empty responses, and infinite rewards: each is said."""
    pool = [candidate(text, 1.0, 0, 0) for text in POOL]
    alike = headrooms({"x 3": arm([pool, pool])}, lambda cases, _: np.full(len(cases), 0.1), CASES)
    empty = headrooms({"x 2": arm([[candidate("", None, None, None)] * 2] * 2, 2)}, by_words, CASES)
    infinite = headrooms(
        {"x 3": arm([pool, pool])}, lambda _, texts: np.array([np.inf if t == "one" else 0 for t in texts]), CASES
    )
    for found, why in ((alike, "alike"), (empty, "alike"), (infinite, "not finite")):
        (name,) = found
        assert set(found[name].share.values()) == {None}
        section = headroom_section(found, [name, "other"], "u")
        assert section is not None
        assert {row[1] for row in section.rows[:-1]} == {"-"}
        assert why in section.notes[-1]
    assert headroom_section({}, ["other"], "u") is None
    assert headrooms({"x 1": arm([pool[:1]] * 2, 1)}, by_words, CASES) == {}


def test_a_rule_is_an_oracle_too() -> None:
    gold, _, _ = open_gold(CompareConfig(judge=JudgeSpec(rule_field="taste")))
    pool = [candidate(text, r, 0, 0) for text, r in zip(POOL, (1, 2, 3), strict=True)]
    found = headrooms({"x 3": arm([pool, pool])}, gold, CASES)["x 3"]
    assert found.headroom.value == pytest.approx(1.0)  # three words against two; one against two
    assert share(found)["personal"] == pytest.approx(0.0)  # right for a, wrong for b
    assert share(found)["oracle"] == 1.0


def test_the_judge_rewards_each_response_once() -> None:
    asked: list[tuple[str, str]] = []

    def gold(cases: Sequence[Comparison], responses: Sequence[str]) -> Array:
        asked.extend((c.user_id, response) for c, response in zip(cases, responses, strict=True))
        return by_words(cases, responses)

    pool = [candidate(text, 1.0, 0, 0) for text in [*POOL, "one"]]
    headrooms({"x 2": arm([pool[:2]] * 2, 2), "x 4": arm([pool] * 2, 4)}, gold, CASES)
    assert sorted(asked) == sorted((user, text) for user in "ab" for text in POOL)
