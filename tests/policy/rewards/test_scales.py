"""Rewards on each person's own scale: worked out by hand, kept by id, of answers of any length."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.normalizers import Replace

from policy.compare.answering import _rewards
from policy.compare.judging import gold_by_model, gold_rewards
from policy.judging.judges import Duel, gold
from policy.rewards.adapters import EMPTY, trl_reward
from policy.rewards.personal import PersonalReward, compute_rewards
from policy.rewards.scales import UNSCORABLE_REWARD, Scale, fix_scales, load_or_fix_scales, trl_standardised_reward
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.scoring.scorer import Scorer
from rerank.ranking.candidates import _score_pools
from tests.conftest import build_tokenizer
from tests.planted import opposed_people
from tests.prm.scoring.test_scorer import train_small

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
    assert scales["anna"](NAN) == UNSCORABLE_REWARD


def test_a_small_spread_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A twentieth of the median person's is; who gives all answers the same is on no scale of their own."""
    people: dict[str | None, str] = dict.fromkeys((None, "anna", "ben", "cleo"), "")
    rewards = {"": [0.0, 0.1], "anna": [0.0, 2.0], "ben": [0.0, 2.0], "cleo": [5.0, 5.0]}
    fix_scales(from_table(rewards), ["p"] * 2, ["0", "1"], people)
    (line,) = caplog.messages
    assert "is 1): the generic user (0.05);" in line
    caplog.clear()
    fix_scales(from_table(rewards | {"": [0.0, 0.3]}), ["p"] * 2, ["0", "1"], people)
    assert not caplog.messages


def test_where_nothing_can_be_read() -> None:
    """Or everybody's reward would be the same number for ever."""
    with pytest.raises(PrmError, match="cannot score"):
        fix_scales(lambda *_: [NAN, NAN], ["p"] * 2, ["", ""], {"anna": ""})


def test_a_reward_is_one_finite_number_for_each_answer() -> None:
    asked: Any = (["p", "p"], ["a", "b"], ["u", None], ["", ""])
    assert compute_rewards(lambda *_: torch.tensor([1.0, 2.0]), *asked) == [1.0, 2.0]  # type: ignore[arg-type]
    for found, fault in (([1.0], "1 numbers for 2 responses"), ([1.0, -float("inf")], "infinite")):
        with pytest.raises(PrmError, match=fault):
            compute_rewards(lambda *_, found=found: found, *asked)


def test_kept_by_id(tmp_path: Path) -> None:
    """And not measured twice."""
    scales = {None: Scale(0.0, 1.0), "anna": Scale(1.0, 0.5)}
    assert load_or_fix_scales(tmp_path / "scale.jsonl", lambda: scales) == scales
    assert load_or_fix_scales(tmp_path / "scale.jsonl", dict) == scales
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
    standard = trl_standardised_reward(reward, fix_scales(reward, prompts, answers, people))
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
    assert not scorer.scores_empty
    standard = trl_standardised_reward(PersonalReward(scorer), {"p0": Scale(0.0, 1.0)})
    answers = ["", " \n", "dog " * 60, "a fox"]
    found = standard(prompts=["why?"] * 4, completions=answers, user_id=["p0"] * 4, user_text=[""] * 4)
    assert found[:3] == [UNSCORABLE_REWARD] * 3
    assert found[3] == pytest.approx(float(scorer.score("why?", ["a fox"], "p0")), abs=1e-4)


def test_an_empty_answer_is_read_where_it_can_be(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model decides, not the length."""
    scorer, asked = Scorer.from_pretrained(run), []
    monkeypatch.setattr(Scorer, "scores_empty", True)
    monkeypatch.setattr(scorer, "score_batch", lambda *a, empty: asked.append((a[1], empty)) or torch.ones(len(a[1])))
    assert PersonalReward(scorer)(["p", "p"], ["", "x"], ["p0", None], ["", ""]) == [1.0, 1.0]
    assert asked == [(["", "x"], True)]


PASSED_OVER = "\u200b"


@pytest.fixture(scope="module", params=["linear", "prefix"])
def deaf(
    tmp_path_factory: pytest.TempPathFactory, backbone_of: Callable[..., str], request: pytest.FixtureRequest
) -> Scorer:
    """A reward model whose tokenizer passes over zero-width characters; the mean over no tokens is no number."""
    folder = tmp_path_factory.mktemp("deaf")
    backbone = shutil.copytree(backbone_of("llama"), folder / "backbone")
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Replace(PASSED_OVER, "")
    tokenizer.save_pretrained(backbone)
    run = train_small(folder / request.param, str(backbone), request.param, opposed_people(8, 0))
    return Scorer.from_pretrained(run, device="cpu")


def test_an_answer_that_the_tokenizer_passes_over_is_an_empty_one_to_ppo_and_trl(deaf: Scorer) -> None:
    answers = ["", PASSED_OVER, 3 * PASSED_OVER, "a king"]
    asked: Any = (["why?"] * 4, answers, ["p0"] * 4, [""] * 4)
    found = compute_rewards(PersonalReward(deaf), *asked)
    assert found[1] == pytest.approx(found[0], nan_ok=True)
    assert found[2] == pytest.approx(found[0], nan_ok=True)
    assert math.isnan(found[0]) is not deaf.scores_empty
    standard = trl_standardised_reward(PersonalReward(deaf), {"p0": Scale(0.0, 1.0)})
    scaled = standard(asked[0], [f" {answer}\n" for answer in answers], user_id=asked[2], user_text=asked[3])
    assert scaled[:3] == pytest.approx([found[0]] * 3 if deaf.scores_empty else [UNSCORABLE_REWARD] * 3, abs=1e-4)


def test_and_to_all_who_pick_or_judge(deaf: Scorer) -> None:
    """It comes last, or loses, or has the worst reward of all; nobody ends at it."""
    texts, case = [PASSED_OVER, "a king", "the fox"], Comparison("p0", "why?", "a", "b")
    duels = [Duel("p0", "why?", first, second) for first, second in (texts[:2], texts[1::-1], [PASSED_OVER, " "])]
    assert gold(deaf)(duels).scores.tolist() == [0.0, 1.0, 0.5]
    by_arm = gold_rewards(gold_by_model(deaf), [case], {"a": texts[:1], "b": texts[1:2], "c": texts[2:]})
    assert by_arm["a"] == min(by_arm["b"], by_arm["c"])
    rewards = _rewards(deaf, "why?", texts, "p0")
    assert [rewards.index(-math.inf), rewards.count(-math.inf)] == [0, 1]
    (pool,) = _score_pools(deaf, deaf, "why?", texts, ["p0"])
    assert pool.personal[0] == pool.personal.min()
    assert trl_reward(deaf)(["why?"] * 3, texts, user_id=["p0"] * 3)[0] == EMPTY
