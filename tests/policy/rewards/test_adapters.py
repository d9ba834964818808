"""The scorer in the shape of three other trainers, each called as that trainer calls it."""

import importlib.util
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import RLOOConfig, RLOOTrainer

from policy.rewards.adapters import EMPTY, trl_reward
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.scoring.scorer import Scorer
from tests.paths import ROOT
from tests.prm.scoring.test_scorer import train_small

ANSWERS = ["jumps over a lazy dog", "seven wizards mix potions"]
TALK = [{"role": "user", "content": "why?"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, backbone_of: Callable[..., str]) -> Path:
    log = [
        Comparison(user, f"why {i}?", ANSWERS[user != "anna"], ANSWERS[user == "anna"], user_text=f"{user} {i}")
        for user in ("anna", "ben")
        for i in range(6)
    ]
    return train_small(tmp_path_factory.mktemp("reward"), backbone_of("llama"), "linear", log)


@pytest.fixture(scope="module")
def scorer(run: Path) -> Scorer:
    return Scorer.from_pretrained(run)


def one(scorer: Scorer, prompt: Any, answer: str, user: str | None, text: str = "") -> float:
    return float(scorer.score(prompt, [answer], user, text))


def test_people_differ(scorer: Scorer) -> None:
    """Or nothing below would show that the user arrives."""
    assert len({round(one(scorer, "why?", ANSWERS[0], user), 4) for user in ("anna", "ben", None)}) == 3


def test_trl_hands_every_completion_its_own_user(scorer: Scorer, tiny: str, tmp_path: Path) -> None:
    """A step of TRL's own trainer, two generations for each of two people and a stranger."""
    reward, calls = trl_reward(scorer), []

    def noted(**given: Any) -> Any:
        calls.append((given, reward(**given)))
        return calls[-1][1]

    rows = [
        {"prompt": TALK, "user_id": user, "user_text": text}
        for user, text in (("anna", "x"), ("ben", None), (None, ""))
    ]
    settings = RLOOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=6,
        num_generations=2,
        max_completion_length=8,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    RLOOTrainer(tiny, noted, settings, Dataset.from_list(rows), processing_class=tokenizer).train()
    ((given, rewards),) = calls
    assert sorted(map(str, given["user_id"])) == ["None", "None", "anna", "anna", "ben", "ben"]
    for prompt, completion, user, text, found in zip(
        given["prompts"], given["completions"], given["user_id"], given["user_text"], rewards, strict=True
    ):
        answer = completion[0]["content"]
        expected = one(scorer, prompt, answer, user, text or "") if answer.strip() else EMPTY
        assert found == pytest.approx(expected, abs=1e-4)


def test_trl_reward_on_texts_and_nothing(scorer: Scorer) -> None:
    reward = trl_reward(scorer, user_column="who", empty=-3.0)
    found = reward(
        prompts=["why?"] * 3, completions=[ANSWERS[0], " ", ANSWERS[1]], who=["anna", "ben", "ben"], trainer_state=None
    )
    expected = [one(scorer, "why?", ANSWERS[0], "anna"), -3.0, one(scorer, "why?", ANSWERS[1], "ben")]
    assert found == pytest.approx(expected, abs=1e-4)
    assert reward(prompts=["why?"], completions=[""], who=["anna"]) == [-3.0]
    with pytest.raises(PrmError, match="'who'"):
        reward(prompts=["why?"], completions=["x"], user_id=["anna"])
    with pytest.raises(PrmError, match=r"\b7\b"):
        reward(prompts=["why?"], completions=["x"], who=[7])


def loaded(name: str) -> Any:
    """A file of `examples/`, loaded as verl and OpenRLHF load it: by its path, under a name of theirs."""
    spec = importlib.util.spec_from_file_location("custom_module", ROOT / "examples" / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_verl_calls_by_keyword(run: Path, scorer: Scorer) -> None:
    compute_score = loaded("verl_reward.py").compute_score
    given = {"data_source": "mine", "solution_str": ANSWERS[0], "ground_truth": "", "run": str(run)}
    extra = {"prompt": "why?", "user_id": "anna", "user_text": "anna 1", "index": 3}
    score = compute_score(**given, extra_info=extra)
    assert isinstance(score, float)
    assert score == pytest.approx(one(scorer, "why?", ANSWERS[0], "anna", "anna 1"), abs=1e-4)
    from_parquet = {"prompt": np.array(TALK, dtype=object), "user_id": "ben"}
    found = compute_score(**given, extra_info=from_parquet, reward_router_address="x")
    assert found == pytest.approx(one(scorer, TALK, ANSWERS[0], "ben"), abs=1e-4)
    assert compute_score(**{**given, "solution_str": ""}, extra_info=extra) == EMPTY
    with pytest.raises(KeyError, match="user_id"):
        compute_score(**given, extra_info={"prompt": "why?"})


def test_threads_of_a_trainer_load_one_model(run: Path, monkeypatch: pytest.MonkeyPatch, loads: list[str]) -> None:
    """verl and OpenRLHF call for each response, from threads: the first calls come at once."""
    monkeypatch.setenv("PRM_RUN", str(run))
    monkeypatch.setenv("PRM_END", "<|end|>")
    verl, openrlhf = loaded("verl_reward.py").compute_score, loaded("openrlhf_reward.py").reward_func
    extra = {"prompt": "why?", "user_id": "anna"}
    calls: list[Callable[[], object]] = [
        lambda: verl("mine", ANSWERS[0], "", extra, run=str(run)),
        lambda: openrlhf([f"? {ANSWERS[0]}"], ["? "], [json.dumps(extra)]),
    ]
    for call in calls:
        loads.clear()
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(call) for _ in range(4)]
        assert [future.exception() for future in futures] == [None] * 4
        assert len(loads) == 1


def test_openrlhf_calls_with_queries_prompts_and_labels(
    run: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in the policy's template, answers behind them with the end of turn unless they were cut short."""
    monkeypatch.setenv("PRM_RUN", str(run))
    monkeypatch.setenv("PRM_END", "<|end|>")
    reward_func = loaded("openrlhf_reward.py").reward_func
    read = "<|user|>why?<|end|>\n<|assistant|>"
    queries = [f"{read}{ANSWERS[0]}<|end|>", f"{read}{ANSWERS[1]}", f"{read}<|end|>"]
    labels = [
        {"user_id": "anna", "prompt": "why?"},
        {"user_id": "ben", "prompt": TALK, "user_text": "ben 1"},
        {"user_id": None, "prompt": "why?"},
    ]
    found = reward_func(queries, [read] * 3, list(map(json.dumps, labels)))
    expected = [one(scorer, "why?", ANSWERS[0], "anna"), one(scorer, "why?", ANSWERS[1], "ben", "ben 1"), EMPTY]
    torch.testing.assert_close(found["rewards"], torch.tensor(expected), atol=1e-4, rtol=0)
    assert found["scores"].equal(found["rewards"])
    with pytest.raises(ValueError, match=r"queries\[0\]"):
        reward_func(["who?"], [read], ["{}"])


def test_rewards_are_numbers(scorer: Scorer) -> None:
    found = trl_reward(scorer)(prompts=["why?"], completions=["x"], user_id=[None])
    assert torch.tensor(found).isfinite().all()
    json.dumps(found)
