"""Rewards on each person's own scale: worked out by hand, kept by id."""

import json
from pathlib import Path

import pytest
import torch

from policy.standard import EMPTY_STANDARD, RewardScale, fit_scale, standard_reward
from prm.scorer import Scorer
from prm.users import UserIndex
from tests.planted import opposed_people
from tests.prm.test_scorer import train_small

NAN = float("nan")


def test_by_hand() -> None:
    """Row 0 has rewards 1, 3 (mean 2, deviation 1), row 1 has -4, 0 (mean -2, deviation 2), row 2 is of one mind."""
    scale = RewardScale.fit(torch.tensor([[1.0, 3.0], [-4.0, 0.0], [5.0, 5.0]]))
    found = scale(torch.tensor([3.0, 2.0, 6.0, NAN]), torch.tensor([0, 1, 2, 1]))
    assert found.tolist() == [1.0, 2.0, 1.0, EMPTY_STANDARD]


def test_kept_by_id(tmp_path: Path) -> None:
    users = UserIndex(["anna", "ben"])
    scale = RewardScale(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 0.5, 0.25]))
    scale.save(tmp_path / "scale.jsonl", users)
    back = RewardScale.load(tmp_path / "scale.jsonl", users)
    assert torch.equal(back.shift, scale.shift)
    assert torch.equal(back.scale, scale.scale)
    rows = [json.loads(line) for line in (tmp_path / "scale.jsonl").read_text().splitlines()]
    assert [row["user_id"] for row in rows] == [None, "anna", "ben"]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory, backbone_of: object) -> Scorer:
    folder = tmp_path_factory.mktemp("reward")
    return Scorer.from_pretrained(train_small(folder, backbone_of("llama"), "linear", opposed_people(8, 0)))  # type: ignore[operator]


def test_everybody_starts_at_zero_with_a_deviation_of_one(scorer: Scorer) -> None:
    """On the answers that the scale was made of, and people's rewards keep their order."""
    users = UserIndex(["p0", "p1", "nobody's"])
    prompts, answers = ["why?", "how?", "who?", "when?"], ["an old king", "a fox", "", "seven wizards"]
    scale = fit_scale(scorer, users, prompts, answers, {"p1": "i mix potions"})
    kept = [i for i, answer in enumerate(answers) if answer]
    reward = standard_reward(scorer, scale, users)
    for user, text in (("p0", None), ("p1", "i mix potions")):
        found = reward(
            prompts=[prompts[i] for i in kept],
            completions=[[{"role": "assistant", "content": f" {answers[i]}\n"}] for i in kept],
            user_id=[user] * 3,
            user_text=[text] * 3,
        )
        assert sum(found) == pytest.approx(0.0, abs=1e-4)
        assert sum(x * x for x in found) / 3 == pytest.approx(1.0, abs=1e-3)
        raw = scorer.score_batch([prompts[i] for i in kept], [answers[i] for i in kept], [user] * 3, [text or ""] * 3)
        assert torch.tensor(found).argsort().tolist() == raw.argsort().tolist()
    assert reward(prompts=["why?"], completions=[" "], user_id=["p0"]) == [EMPTY_STANDARD]
