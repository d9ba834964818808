"""A user's own past comparisons before a prompt: which, in what order, and as many as fit."""

import pytest

from prm.data.comparison import Comparison, Message, Prompt, as_messages
from prm.data.past_comparisons import past_by_user, put_before, texts_of, with_past, without_leaks


def past(n: int, user: str = "anna") -> list[Comparison]:
    return [Comparison(user, f"question {i}?", f"good {i}", f"bad {i}") for i in range(n)]


def shown(prompt: Prompt, own: list[Comparison]) -> list[int]:
    """The numbers of the comparisons in a prompt, in its order."""
    text = as_messages(prompt)[-1].content
    places = {i: text.find(f"question {i}?") for i, _ in enumerate(own)}
    return sorted((i for i, place in places.items() if place >= 0), key=places.__getitem__)


def anything(_: Prompt) -> bool:
    return True


def test_prompt_preferred_and_other_stand_before_the_question() -> None:
    found = with_past("why?", past(2), 9, anything)
    assert isinstance(found, str)
    places = [found.index(text) for text in ("question 0?", "good 0", "bad 0", "question 1?", "good 1", "bad 1")]
    assert places == sorted(places)
    assert found.endswith("\n\nwhy?")
    soft = Comparison("anna", "x?", "worse", "better", p_chosen=0.2)  # the record swaps them
    assert "They preferred: better\n\nTo: worse" in texts_of([soft])[0]


def test_of_too_many_the_newest_are_taken() -> None:
    own = past(5)
    assert shown(with_past("why?", own, 2, anything), own) == [3, 4]
    for room in (0, 120, 260, 400, 10_000):
        found = with_past("why?", own, 9, lambda prompt, room=room: len(prompt) <= room)  # type: ignore[misc]
        there = shown(found, own)
        assert there == list(range(5 - len(there), 5))
        assert there == [] or len(str(found)) <= room
        one_more = own[5 - len(there) - 1 :] if len(there) < 5 else []
        assert (
            not one_more or len(str(with_past("why?", one_more, 9, anything))) > room
        )  # none that would fit is missing
    assert with_past("why?", own, 9, lambda _: False) == "why?"
    assert with_past("why?", own, 0, anything) == with_past("why?", [], 9, anything) == "why?"


def test_one_that_is_too_long_is_passed_over_and_a_tie_shows_nothing() -> None:
    own = past(4)
    own[2] = Comparison("anna", "question 2?", "long " * 900, "bad 2")
    own[3] = Comparison("anna", "question 3?", "good 3", "bad 3", p_chosen=0.5)
    assert shown(with_past("why?", own, 2, lambda prompt: len(prompt) < 1000), own) == [0, 1]


def test_the_newest_is_last_by_time_where_all_have_one() -> None:
    rows = [Comparison("anna", f"question {i}?", "a", "b", time=t) for i, t in enumerate([30, 10, 20])]
    assert [c.prompt for c in past_by_user(rows)["anna"]] == ["question 1?", "question 2?", "question 0?"]
    days = [Comparison("anna", f"question {i}?", "a", "b", time=f"2026-01-0{9 - i}") for i in range(3)]
    assert [c.prompt for c in past_by_user(days)["anna"]] == ["question 2?", "question 1?", "question 0?"]
    for some in ([*rows[:2], past(3)[2]], [rows[0], days[1]]):  # no common order: that of the log
        assert past_by_user(some)["anna"] == some
    both = past_by_user([*past(2), *past(1, "ben")])
    assert {user: len(own) for user, own in both.items()} == {"anna": 2, "ben": 1}


@pytest.mark.parametrize(
    "prompt", ["what?", (Message("user", "hi?"), Message("assistant", "oh"), Message("user", "what?"))]
)
def test_nothing_shows_what_is_asked(prompt: Prompt) -> None:
    """Nothing on the prompt, later in its conversation, or with one of its responses; what was before may stay."""
    later = (*as_messages(prompt), Message("assistant", "one"), Message("user", "more?"))
    leaks = [
        Comparison("anna", prompt, "x", "y"),
        Comparison("anna", later, "x", "y"),
        Comparison("anna", "else?", "one", "y"),
        Comparison("anna", "else?", "x", "two"),
    ]
    earlier = Comparison("anna", "hi?", "oh", "ah")
    assert without_leaks([earlier, *leaks, *past(1)], prompt, ("one", "two")) == [earlier, *past(1)]


def test_text_stands_in_the_last_turn() -> None:
    talk = (Message("system", "be brief"), Message("user", "hi?"), Message("assistant", "oh"), Message("user", "what?"))
    assert put_before(talk, "first") == (*talk[:3], Message("user", "first\n\nwhat?"))
    assert put_before("what?", "first") == "first\n\nwhat?"
    found = with_past(talk, past(1), 1, anything)
    assert found[:3] == talk[:3]
    assert shown(found, past(1)) == [0]
    assert texts_of([Comparison("a", "x" * 9, "y" * 9, "z" * 9)], max_chars=4)[0].count(" ...") == 3
