"""How far judge and reward agree, by hand, and which backbones they share."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import transformers as t

from policy.cli import main
from policy.compare.agreement import (
    Agreement,
    Alike,
    JudgeReport,
    alike_on_comparisons,
    alike_on_responses,
    what_it_reads,
)
from policy.compare.judging import Gold, gold_by_model
from prm.data.comparison import Comparison
from prm.errors import DataError
from prm.metrics import Array, Estimate
from prm.scoring.scorer import Scorer
from prm.scoring.user_warnings import backbones_below, shared_backbone
from prm.training.run import train
from tests.conftest import save_random
from tests.policy.test_compare import tree, write
from tests.prm.models.test_encoders import ENCODERS, settings

Table = Mapping[str, float]


def by_table(table: Table) -> Gold:
    """Rewards by the response alone; NaN for a response that is not in the table."""

    def rewards(cases: Sequence[Comparison], responses: Sequence[str]) -> Array:
        return np.array([table.get(response, np.nan) for response in responses])

    return rewards


REWARD = by_table({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0})
BACKWARDS = by_table({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0})
JUDGE = by_table({"a": 1.0, "b": 1.0, "c": 0.0})  # a tie, c the worst, d unknown


def value(part: Alike) -> float:
    return cast(Estimate, part.share).value


def test_shares_on_comparisons_are_those_by_hand() -> None:
    """Ann: a/b is a tie of the judge (0.5), b/c is turned round (0). Ben: a/b (0.5); c/d cannot be judged."""
    log = [Comparison(*row) for row in [("ann", "p", "a", "b"), ("ann", "q", "b", "c"), ("ben", "p", "b", "a")]]
    log.append(Comparison("ben", "q", "c", "d"))
    found = alike_on_comparisons(JUDGE, REWARD, log)
    assert (value(found), found.count) == (pytest.approx((0.25 + 0.5) / 2), 3)
    assert value(alike_on_comparisons(REWARD, REWARD, log)) == 1.0
    assert value(alike_on_comparisons(BACKWARDS, REWARD, log)) == 0.0
    swapped = [Comparison(c.user_id, c.prompt, c.rejected, c.chosen) for c in log]  # labels do not enter
    assert value(alike_on_comparisons(JUDGE, REWARD, swapped)) == value(found)
    assert alike_on_comparisons(JUDGE, REWARD, log[3:]) == Alike(None, 0)


def test_shares_on_responses_are_those_by_hand() -> None:
    """Distinct responses two by two: a text that two arms share is no pair, and each case counts once."""
    cases = [Comparison("ann", "p", "x", "y"), Comparison("ann", "q", "x", "y"), Comparison("ben", "p", "x", "y")]
    arms = {"A": ["a", "b", "a"], "B": ["b", "c", "a"], "C": ["c", "b", "a"], "D": ["d", "b", "a"]}
    found = alike_on_responses(JUDGE, REWARD, cases, arms)
    # p: a/b 0.5, a/c 0, b/c 0, three pairs with d unknown; q: b/c 0; Ben's responses are all the same
    assert (value(found), found.count) == (pytest.approx((0.5 / 3 + 0.0) / 2), 4)
    whole = alike_on_responses(BACKWARDS, REWARD, cases, arms)
    assert (value(whole), whole.count) == (0.0, 7)
    shuffled = {name: arms[name] for name in "DBCA"}
    assert alike_on_responses(JUDGE, REWARD, cases, shuffled) == found
    assert alike_on_responses(JUDGE, REWARD, cases[2:], {"A": ["a"], "B": ["a"]}) == Alike(None, 0)


def test_what_is_too_long_for_one_of_the_two_is_left_out_and_not_counted(tmp_path: Path) -> None:
    """In the agreement alone: where responses are judged, it is an error as before."""
    scorer = Scorer.from_pretrained(
        train(settings(tmp_path, save_random(tmp_path / "e", t.AutoModel, ENCODERS["bert"])))
    )
    log = [Comparison("p0", "what?", "a king", "the fox"), Comparison("p0", "why?", "the fox", "the fox jumps " * 40)]
    assert (
        alike_on_comparisons(gold_by_model(scorer, skip_unreadable=True), gold_by_model(scorer, True), log).count == 1
    )
    with pytest.raises(DataError):
        gold_by_model(scorer)(log, [c.rejected for c in log])


def test_only_a_judge_that_shares_a_backbone_is_called_dependent() -> None:
    alike = Alike(None, 0)
    rewards = (Agreement("r", "x", "", alike, alike), Agreement("s", "y", "smollm2-135m", alike, alike))
    assert JudgeReport("g", "z", rewards[:1]).sentences() == []
    (said,) = JudgeReport("g", "z", rewards).sentences()
    assert "smollm2-135m" in said
    assert JudgeReport("g", "z", rewards).section().rows[0][:2] == ("r", "x")


def test_the_backbones_of_planned_runs_are_known_before_training(tmp_path: Path) -> None:
    """PPO on an SFT run, by a reward on it, all below one language model; the judges below others."""

    def on(name: str, **more: object) -> dict[str, object]:
        return {"backbone": {"name": name}, **more}

    folders = {name: tmp_path / name for name in ("sft", "reward", "ppo", "gold", "other")}
    planned = {
        folders["sft"]: on("smollm2-135m"),
        folders["reward"]: on(str(folders["sft"])),
        folders["ppo"]: on(str(folders["sft"] / "backbone"), reward=str(folders["reward"] / "uniform")),
        folders["gold"]: on("smollm2-135m"),
        folders["other"]: on("models/encoder"),
    }
    assert set(backbones_below(folders["ppo"], planned).values()) == {"smollm2-135m"}  # the SFT run is not one
    for run in ("reward", "ppo"):
        assert shared_backbone(folders[run], folders["gold"], planned) == "smollm2-135m"
        assert shared_backbone(folders[run], folders["other"], planned) == ""


@pytest.mark.parametrize("name", ["encoder", "the same", "a copy"])
def test_a_comparison_says_what_the_judge_reads(
    name: str, backbone_of: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An encoder as judge, from the YAML alone; a copy of the reward's own backbone in another folder is found out."""
    own = backbone_of("llama")
    if name == "encoder":
        backbone = save_random(tmp_path / "encoder", t.AutoModel, ENCODERS["bert"])
    else:
        backbone = own if name == "the same" else str(tmp_path / "copy")
    if name == "a copy":
        t.AutoModelForCausalLM.from_pretrained(own).save_pretrained(backbone)
        t.AutoTokenizer.from_pretrained(own).save_pretrained(backbone)
    whole = tree(own, tmp_path)
    on_backbone = {"name": backbone, "dtype": "float32", "max_length": 120}
    of_gold = {
        "data": {"path": "{reward}/test.jsonl", "test_fraction": 0.0, "holdout_by": "pair"},
        "backbone": on_backbone,
        "search": {"folds": 2, "l2": [1.0], "user_l2": [1.0], "poolings": ["mean"]},
    }
    gold = {"command": "train", "settings": of_gold}
    if name == "a copy":
        whole["runs"]["reward"]["settings"] |= {"backbone": on_backbone | {"name": own}}
    whole["runs"] = {one: whole["runs"][one] for one in ("sft", "reward")} | {"gold": gold}
    whole["arms"] = {one: whole["arms"][one] for one in ("SFT", "chosen", "best of")}
    whole |= {"judge": {"gold": "{gold}"}, "group_by": ""}
    main(["compare", write(tmp_path, whole)])
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    judge, (reward,) = found["judge"], found["judge"]["rewards"]
    assert backbone in judge["reads"] == what_it_reads(judge["judge"])
    assert reward["reward"] == str(tmp_path / "out/runs/reward")
    assert str(own) in reward["reads"]
    assert bool(reward["shared"]) == (name != "encoder")
    assert ("overlooks" in caplog.text) == (name == "the same")  # what is known before training
    assert any("not independent" in sentence for sentence in found["advice"]) == (name != "encoder")
    held_out = sum(1 for _ in (tmp_path / "out/runs/reward/test.jsonl").open())
    assert reward["comparisons"]["count"] == held_out  # of all three users
    assert reward["pairs"]["count"] > 0
    assert "The judge" in (tmp_path / "out/compare.md").read_text()
