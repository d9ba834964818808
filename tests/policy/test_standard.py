"""Rewards on each person's own scale: worked out by hand, kept by id, of answers of any length."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policy.scoring import PersonalReward, ask
from policy.standard import UNREAD, Scale, fix_scales, kept_scales, trl_standard
from prm.errors import PrmError
from prm.scorer import Scorer
from tests.planted import opposed_people
from tests.prm.test_scorer import train_small

NAN = float("nan")


def from_table(rewards: dict[str, list[float]]) -> Callable[..., list[float]]:
    """A reward that reads the answer as a place in the person's row."""
    return lambda prompts, answers, users, texts: [
        rewards[u or ""][int(a)] for a, u in zip(answers, users, strict=True)
    ]


def test_by_hand() -> None:
    """anna: 1, 3, unread twice: mean 2, deviation 1. cleo: -4, 0, -4, 0: mean -2, deviation 2. ben: all alike."""
    rewards = {"anna": [1.0, 3.0, NAN, NAN], "ben": [5.0] * 4, "cleo": [-4.0, 0.0, -4.0, 0.0]}
    scales = fix_scales(from_table(rewards), ["p"] * 4, ["0", "1", "2", "3"], {"anna": "", "ben": "", "cleo": ""})
    assert scales == {"anna": Scale(2.0, 1.0), "ben": Scale(5.0, 1.0), "cleo": Scale(-2.0, 2.0)}
    assert [scales["anna"](4.0), scales["ben"](6.0), scales["cleo"](2.0)] == [2.0, 1.0, 2.0]
    assert scales["anna"](NAN) == UNREAD


def test_a_small_spread_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A twentieth of the median person's is; who gives all answers the same is on no scale of their own."""
    people: dict[str | None, str] = dict.fromkeys((None, "anna", "ben", "cleo"), "")
    rewards = {"": [0.0, 0.1], "anna": [0.0, 2.0], "ben": [0.0, 2.0], "cleo": [5.0, 5.0]}
    fix_scales(from_table(rewards), ["p"] * 2, ["0", "1"], people)
    (line,) = caplog.messages
    assert "(the median person's by 1): the unknown user (0.05); on a scale" in line
    caplog.clear()
    fix_scales(from_table(rewards | {"": [0.0, 0.3]}), ["p"] * 2, ["0", "1"], people)
    assert not caplog.messages


def test_where_nothing_can_be_read() -> None:
    """Or everybody's reward would be the same number for ever."""
    with pytest.raises(PrmError, match="cannot read any"):
        fix_scales(lambda *_: [NAN, NAN], ["p"] * 2, ["", ""], {"anna": ""})


def test_a_reward_is_one_finite_number_for_each_answer() -> None:
    asked: Any = (["p", "p"], ["a", "b"], ["u", None], ["", ""])
    assert ask(lambda *_: torch.tensor([1.0, 2.0]), *asked) == [1.0, 2.0]  # type: ignore[arg-type, return-value]
    for found, fault in (([1.0], "1 numbers for 2 answers"), ([1.0, -float("inf")], "infinite")):
        with pytest.raises(PrmError, match=fault):
            ask(lambda *_, found=found: found, *asked)


def test_kept_by_id(tmp_path: Path) -> None:
    """And not measured twice."""
    scales = {None: Scale(0.0, 1.0), "anna": Scale(1.0, 0.5)}
    assert kept_scales(tmp_path / "scale.jsonl", lambda: scales) == scales
    assert kept_scales(tmp_path / "scale.jsonl", dict) == scales
    rows = [json.loads(line) for line in (tmp_path / "scale.jsonl").read_text().splitlines()]
    assert rows[1] == {"user_id": "anna", "shift": 1.0, "scale": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, backbone_of: Callable[..., str]) -> Path:
    return train_small(tmp_path_factory.mktemp("reward"), backbone_of("llama"), "linear", opposed_people(8, 0))


def test_everybody_starts_at_zero_with_a_deviation_of_one(run: Path) -> None:
    """In TRL's shape, on the answers that the scale was made of, and people's rewards keep their order."""
    scorer = Scorer.from_pretrained(run)
    reward = PersonalReward(scorer)
    prompts, answers = ["why?", "how?", "when?"], ["an old king", "a fox", "seven wizards"]
    people: dict[str | None, str] = {None: "", "p0": "", "p1": "i mix potions", "nobody's": ""}
    standard = trl_standard(reward, fix_scales(reward, prompts, answers, people))
    for user, text in (("p0", ""), ("p1", "i mix potions")):
        found = standard(
            prompts=[[{"role": "user", "content": prompt}] for prompt in prompts],
            completions=[[{"role": "assistant", "content": f" {answer}\n"}] for answer in answers],
            user_id=[user] * 3,
            user_text=[text] * 3,
            trainer_state=None,
        )
        assert sum(found) == pytest.approx(0.0, abs=1e-4)
        assert sum(x * x for x in found) / 3 == pytest.approx(1.0, abs=1e-3)
        raw = scorer.score_batch(prompts, answers, [user] * 3, [text] * 3)
        assert torch.tensor(found).argsort().tolist() == raw.argsort().tolist()


def test_answers_that_cannot_be_read_do_not_end_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, blanks, and more than fits: as a text an answer may be longer than the tokens that were drawn."""
    scorer = Scorer.from_pretrained(run)
    monkeypatch.setattr(scorer.encoder, "max_length", 40)
    assert not scorer.reads_empty
    standard = trl_standard(PersonalReward(scorer), {"p0": Scale(0.0, 1.0)})
    answers = ["", " \n", "dog " * 60, "a fox"]
    found = standard(prompts=["why?"] * 4, completions=answers, user_id=["p0"] * 4, user_text=[""] * 4)
    assert found[:3] == [UNREAD] * 3
    assert found[3] == pytest.approx(float(scorer.score("why?", ["a fox"], "p0")), abs=1e-4)


def test_an_empty_answer_is_read_where_it_can_be(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model decides, not the length."""
    scorer, asked = Scorer.from_pretrained(run), []
    monkeypatch.setattr(Scorer, "reads_empty", True)
    monkeypatch.setattr(scorer, "score_batch", lambda *a, empty: asked.append((a[1], empty)) or torch.ones(len(a[1])))
    assert PersonalReward(scorer)(["p", "p"], ["", "x"], ["p0", None], ["", ""]) == [1.0, 1.0]
    assert asked == [(["", "x"], True)]
