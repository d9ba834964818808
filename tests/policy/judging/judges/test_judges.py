"""Duels, rules, and a reward model as judge."""

import math
from dataclasses import replace

import numpy as np
import pytest

from policy.judging.judges import (
    Duel,
    Judge,
    JudgedDuels,
    by_rule,
    by_user,
    contains,
    duels_between,
    gold,
    longer,
    shorter,
    with_history,
)
from prm.data.comparison import Comparison, Message
from prm.errors import DataError, PrmError
from tests.prm.evaluation.audit.fakes import FakeScorer, by_length

DUELS = [
    Duel("anna", "why?", "one two", "one"),
    Duel("ben", "why?", "one", "one  two three"),
    Duel("anna", "why?", "a b", "c d"),
]


@pytest.mark.parametrize(
    ("rule", "scores"),
    [(longer, [1.0, 0.0, 0.5]), (shorter, [0.0, 1.0, 0.5]), (contains("TWO"), [1.0, 0.0, 0.5])],
)
def test_rules_by_hand(rule: object, scores: list[float]) -> None:
    assert by_rule(rule)(DUELS).scores.tolist() == scores  # type: ignore[arg-type]


def test_everybody_by_their_own_rule() -> None:
    judged = by_user({"anna": shorter})(DUELS)
    np.testing.assert_array_equal(judged.scores, [0.0, math.nan, 0.5])
    assert judged.unjudged == {1: "no rule: ben"}
    assert judged.notes() == ["1 of 3 duels not judged: 1 no rule; duel 1: no rule: ben"]


def test_no_duels() -> None:
    for judge in (by_rule(longer), by_user({}), gold(FakeScorer(["anna"], by_length(1.0)))):  # type: ignore[arg-type]
        assert judge([]).scores.tolist() == []


SCORER = FakeScorer(["anna", "ben"], lambda p, y, u, t: len(y.split()) * {"anna": 1.0, "ben": -1.0, None: 0.1}[u])


def test_gold_goes_by_the_persons_reward() -> None:
    assert gold(SCORER)(DUELS).scores.tolist() == [1.0, 1.0, 0.5]  # type: ignore[arg-type]


def test_gold_ties_up_to_the_margin() -> None:
    """Margins 1, 2 and 0."""
    assert gold(SCORER, tie_below=1.0)(DUELS).scores.tolist() == [0.5, 1.0, 0.5]  # type: ignore[arg-type]


def test_gold_judges_for_unknown_users_only_if_asked() -> None:
    unknown = Duel("zoe", "why?", "one two", "one")
    judged = gold(SCORER)([unknown, DUELS[0]])  # type: ignore[arg-type]
    np.testing.assert_array_equal(judged.scores, [math.nan, 1.0])
    assert judged.unjudged == {0: "unknown to the gold model: zoe"}
    assert gold(SCORER, generic=True)([unknown]).scores.tolist() == [1.0]  # type: ignore[arg-type]


def test_gold_uses_the_users_text_and_no_empty_answer() -> None:
    read: list[tuple[str, str]] = []

    def reward(prompt: str, response: str, user: str | None, text: str) -> float:
        read.append((response, text))
        return 0.0

    duels = [
        Duel("anna", "why?", "x", " ", "brief"),
        Duel("anna", "why?", "", "x"),
        Duel("anna", "why?", "", " "),
        Duel("anna", "why?", "x", "y", "brief"),
    ]
    assert gold(FakeScorer(["anna"], reward))(duels).scores.tolist() == [1.0, 0.0, 0.5, 0.5]  # type: ignore[arg-type]
    assert read == [("x", "brief"), ("y", "brief")]


@pytest.mark.parametrize("judge", [by_rule(longer), by_user({"anna": shorter}), gold(SCORER)])  # type: ignore[arg-type]
def test_swapping_the_two_answers_turns_the_verdict(judge: Judge) -> None:
    turned = [replace(duel, first=duel.second, second=duel.first) for duel in DUELS]
    np.testing.assert_array_equal(judge(turned).scores, 1.0 - judge(DUELS).scores)


def test_duels_of_cases() -> None:
    metadata = {"open_feedback": "nice", "system_string": "Be kind."}
    case = Comparison("anna", "why?", "x", "y", user_text="brief", metadata=metadata)
    assert duels_between([case], ["a"], ["b"]) == [
        Duel("anna", "why?", "a", "b", "brief", "nice", system_string="Be kind.")
    ]
    with pytest.raises(PrmError, match="1, 2, 1"):
        duels_between([case], ["a", "b"], ["b"])


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"user_id": ""}, "user_id"),
        ({"prompt": " "}, "prompt"),
        ({"first": None}, "first"),
        ({"second": ["b"]}, "second"),
        ({"open_feedback": 3}, "open_feedback"),
        ({"system_string": None}, "system_string"),
    ],
)
def test_a_duel_that_makes_no_sense(fields: dict[str, object], name: str) -> None:
    right: dict[str, object] = {"user_id": "anna", "prompt": "why?", "first": "a", "second": "b"}
    with pytest.raises(DataError, match=f"'{name}'"):
        Duel(**{**right, **fields})  # type: ignore[arg-type]


def test_the_past_gives_no_verdict_away() -> None:
    """Own choices, the last ones; none on the prompt, none later in the conversation, none with a judged answer."""
    asked = (Message("user", "tea?"), Message("assistant", "green?"), Message("user", "why?"))
    later = (*asked, Message("assistant", "first"), Message("user", "sure?"))
    kept = [Comparison("anna", prompt, "x", "y") for prompt in ("one?", "two?", "three?")]
    earlier = Comparison("anna", asked[:1], "green?", "black?")
    leaks = [
        Comparison("anna", asked, "x", "y"),
        Comparison("anna", later, "x", "y"),
        Comparison("anna", "four?", "first", "y"),
        Comparison("anna", "four?", "x", "second"),
        Comparison("ben", "four?", "x", "y"),
    ]
    duel = Duel("anna", asked, "first", "second")
    (found,) = with_history(
        [duel], [kept[0], leaks[0], earlier, *leaks[1:3], kept[1], *leaks[3:], kept[2]], max_history=3
    )
    assert found == replace(duel, history=(earlier, kept[1], kept[2]))
    assert with_history([duel], kept, max_history=0)[0].history == ()
    assert with_history([duel], [], max_history=3)[0].history == ()


def test_notes_name_what_kinds_of_reasons_there_were() -> None:
    judged = JudgedDuels(np.full(4, math.nan), {3: "refused: no", 1: "no verdict: hm", 2: "refused: never"})
    assert judged.notes() == [
        "3 of 4 duels not judged: 2 refused, 1 no verdict; duel 1: no verdict: hm",
    ]
