"""Whose pick do people rank first: values by hand, and people with opposite tastes."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.real_people.picks import OTHERS, Question, Value, controls, main, questions_of, rows_of, value_of
from benchmarks.real_people.sets import RealPeople
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.compare.summary import BEST_BASELINE, BEST_PERSONAL
from prm.io.tables import write_jsonl
from prm.metrics import Estimate
from tests.conftest import WORDS


def ranking(user: str, prompt: str, *best_first: str) -> list[Comparison]:
    """All pairs of a ranking."""
    return [Comparison(user, prompt, a, b) for i, a in enumerate(best_first) for b in best_first[i + 1 :]]


def test_a_ranking_is_put_together_from_its_pairs() -> None:
    log = [
        *ranking("ann", "p", "a", "b", "c"),
        *ranking("ben", "p", "c", "a", "b"),
        *ranking("ann", "q", "d", "e", "f"),
    ]
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    reward = {"a": 0.5, "b": 2.0, "c": 1.0, "d": 0.0, "e": 0.0, "f": -3.0}
    margin = np.array([reward[log[i].chosen] - reward[log[i].rejected] for i in order])
    found = questions_of([log[i] for i in order], {"m": margin})
    losses = {(one.user, one.prompt): one.losses for one in found}
    assert len(losses) == 3
    of_ann, of_ben = (next(one for one in found if one.user == user and "a" in one.losses) for user in ("ann", "ben"))
    assert of_ann.losses == {"a": 0.0, "b": 1.0, "c": 2.0}
    assert of_ben.losses == {"c": 0.0, "a": 1.0, "b": 2.0}
    for one in found:  # three times the reward, up to a constant
        centred = {text: 3 * (reward[text] - np.mean([reward[t] for t in one.losses])) for text in one.losses}
        assert one.rewards["m"] == pytest.approx(centred)
    tie = questions_of([Comparison("ann", "p", "a", "b", p_chosen=0.5)], {})[0]
    assert tie.losses == {"a": 0.5, "b": 0.5}
    with pytest.raises(PrmError, match="not finite"):
        questions_of(log, {"m": np.full(len(log), np.nan)})


@pytest.mark.parametrize(
    ("rewards", "first", "captured"),
    [
        ((3.0, 2.0, 1.0), 1.0, 1.0),
        ((2.0, 3.0, 1.0), 0.0, 0.0),
        ((1.0, 2.0, 3.0), 0.0, -1.0),
        ((1.0, 1.0, 1.0), 1 / 3, 0.0),
        ((2.0, 2.0, 1.0), 0.5, 0.5),
        ((2.0, 1.0, 2.0), 0.5, 0.0),
    ],
)
def test_what_a_pick_is_worth(rewards: tuple[float, ...], first: float, captured: float) -> None:
    """Of responses ranked a, b, c: ranks 1, 2, 3, mean 2; picks that are level count as their mean."""
    question = Question("ann", "p", {"a": 0.0, "b": 1.0, "c": 2.0})
    found = value_of(question, dict(zip("abc", rewards, strict=True)))
    assert (found.first, found.captured) == pytest.approx((first, captured))
    level = Question("ann", "p", {"a": 1.0, "b": 1.0, "c": 1.0})  # nothing to capture
    pair = Question("ann", "p", {"a": 0.0, "b": 1.0})  # the first rank is half a rank above the mean
    assert value_of(pair, {"a": 1.0, "b": 0.0}) == Value(1.0, 1.0)
    assert value_of(level, dict(zip("abc", rewards, strict=True))) == Value(1.0, 0.0)


def test_controls_are_those_by_hand() -> None:
    """The others' favourite is of those who ranked the same prompt, without the person's own ranking."""
    long, middle, short = "one two three", "one two", "one"
    log = [
        *ranking("ann", "p", long, middle, short),
        *ranking("ben", "p", short, middle, long),
        *ranking("cem", "p", short, long, middle),
        *ranking("dan", "q", middle, short, long),
    ]
    found = controls(questions_of(log, {}))
    firsts = {name: [value.first for value in values] for name, values in found.items()}
    assert firsts["longest"] == [1.0, 0.0, 0.0, 0.0]
    assert firsts["shortest"] == [0.0, 1.0, 1.0, 0.0]
    assert firsts["random"] == pytest.approx([1 / 3] * 4)
    # Ann's others put short first. Ben's: long (0 and 1) before short (2 and 0). Cem's: all level. Dan has none.
    assert firsts[OTHERS] == pytest.approx([0.0, 0.0, 1 / 3, 1 / 3])


def test_differences_are_paired() -> None:
    """Two people on two prompts: the model is right where the baseline is wrong, and once more."""
    rankings = [ranking(user, prompt, "a", "b", "c") for user in ("ann", "ben") for prompt in ("p", "q")]
    questions = [one for log in rankings for one in questions_of(log, {})]
    right, wrong = {"a": 1.0, "b": 0.0, "c": 0.0}, {"a": 0.0, "b": 1.0, "c": 0.0}
    for one, baseline, own in zip(questions, (wrong, right, wrong, wrong), (right, right, right, wrong), strict=True):
        one.rewards = {BEST_BASELINE: baseline, "model": own}
    found = {row.name: row for row in rows_of(questions, {"model": 2})}
    model = found["model"]
    assert model.more_first is not None
    assert (model.first.value, model.more_first.value, model.chosen) == (0.75, 0.5, 2)
    assert (found[BEST_BASELINE].first.value, found[BEST_BASELINE].more_first) == (0.25, None)


def test_opposite_tastes_are_served_by_personal_models_alone(tmp_path: Path, tiny: str) -> None:
    """Half of the people rank by the number of "king", the other half the other way round, on prompts of their own."""
    draw = random.Random(0)
    plain = [word for word in WORDS if word != "king"]
    rows = []
    for i in range(30):
        versions = [" ".join([*draw.choices(plain, k=6 - 2 * k), *["king"] * 2 * k]) for k in range(3)]
        for person in range(4):
            ranked = versions if person % 2 else versions[::-1]
            rows.append({"user_id": f"p{person}", "prompt": f"what of {draw.choice(plain)} {i}?", "responses": ranked})
    write_jsonl(tmp_path / "data/rankings.jsonl", rows)
    of = RealPeople("tiny", "Tiny", "They differ.", "rankings.jsonl", "rankings", "prompt")
    flags = ["--folder", str(tmp_path / "out"), "--backbone", tiny, "--folds", "2"]
    main([str(tmp_path / "data"), *flags, "--models", "length_sign", "individual"], of)
    found = json.loads((tmp_path / "out/picks.json").read_text())
    assert (found["questions"], found["people"]) == (120, 4)
    first = {row["name"]: Estimate(**row["first"]).value for row in found["rows"]}
    assert first["random"] == pytest.approx(1 / 3)
    assert first[BEST_PERSONAL] > 0.75
    assert first[BEST_BASELINE] < 0.6
    assert sum(row["chosen"] for row in found["rows"]) == 4  # a baseline and a winner in each of two parts
    assert "ranked first" in (tmp_path / "out/picks.md").read_text()
