"""`benchmarks/clicks.py`: shares by hand, and somebody who clicks through a tiny service."""

from dataclasses import replace

import pytest

from benchmarks import clicks
from rerank.service.engine import Engine
from tests.planted import opposed_people

WITH, WITHOUT = "a king jumps over seven", "a lazy dog jumps over"


def test_shares_are_sums_over_the_headroom() -> None:
    """What is won is summed before it is divided: people with little to win count little."""
    people = [
        clicks.Gained(won=[0.0, 1.0, 2.0, 3.0, 4.0], headroom=4.0, picks_best=[0.0] * 5, choices=2),
        clicks.Gained(won=[0.0, -1.0, 0.0, 0.0, 1.0], headroom=1.0, picks_best=[0.0] * 5, choices=2),
    ]
    ((name, rule, n, *shares),) = clicks.rows_of({"x | at random": people})
    assert (name, rule, n) == ("x", "at random", "2")
    assert [share.split()[0] for share in shares] == ["0", "0", "40", "60", "100"]


@pytest.mark.parametrize("rule", clicks.RULES)
def test_clicks_win_what_there_is_to_win(rule: str, engine: Engine) -> None:
    """Of two people of opposite taste the generic pick is the best of one; the other wins everything by clicking."""
    headroom = []
    for user, values in (("p0", [1.0, 0.0]), ("p1", [0.0, 1.0])):
        pool = [replace(c, user_id="new") for c in opposed_people(40, 0, people=4) if c.user_id == user]
        choices = [clicks.Choice("what of old wizards?", [WITH, WITHOUT], values)]
        gained = clicks.clicked(engine, clicks.Clicker(user, pool, choices), rule, seed=0)
        headroom.append(gained["headroom"])
        assert gained["won"][0] == 0.0
        assert gained["won"][-1] == gained["headroom"]
        assert gained["picks_best"][-1] == gained["choices"] == 1
    assert sorted(headroom) == [0.0, 1.0]
