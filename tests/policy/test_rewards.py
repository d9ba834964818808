"""The scorer in the shape of three other trainers, each called as that trainer calls it."""

import importlib.util
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import RLOOConfig, RLOOTrainer

from policy.rewards import EMPTY, openrlhf_server, trl_reward, verl_compute_score
from prm.comparison import Comparison
from prm.errors import DataError, PrmError
from prm.scorer import Scorer
from tests.prm.test_scorer import train_small

ANSWERS = ["jumps over a lazy dog", "seven wizards mix potions"]
TALK = [{"role": "user", "content": "why?"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, backbone_of: Callable[..., str]) -> Path:
    log = [
        Comparison(user, f"why {i}?", *(ANSWERS if user == "anna" else ANSWERS[::-1]), user_text=f"{user} {i}")
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

    def noted(**given: Any) -> list[float]:
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
    with pytest.raises(PrmError, match="no column 'who'"):
        reward(prompts=["why?"], completions=["x"], user_id=["anna"])
    with pytest.raises(PrmError, match="user ids are text, got 7"):
        reward(prompts=["why?"], completions=["x"], who=[7])


def test_verl_loads_a_file_and_calls_by_keyword(run: Path, scorer: Scorer, tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(
        "from policy.rewards import verl_compute_score\nfrom prm import Scorer\n"
        f"compute_score = verl_compute_score(Scorer.from_pretrained({str(run)!r}))\n"
    )
    spec = importlib.util.spec_from_file_location("custom_module", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = {"data_source": "mine", "solution_str": ANSWERS[0], "ground_truth": ""}
    extra = {"prompt": "why?", "user_id": "anna", "user_text": "anna 1", "index": 3}
    score = module.compute_score(**given, extra_info=extra)
    assert isinstance(score, float)
    assert score == pytest.approx(one(scorer, "why?", ANSWERS[0], "anna", "anna 1"), abs=1e-4)
    from_parquet = {"prompt": np.array(TALK, dtype=object), "user_id": "ben"}
    found = module.compute_score(**given, extra_info=from_parquet, reward_router_address="x")
    assert found == pytest.approx(one(scorer, TALK, ANSWERS[0], "ben"), abs=1e-4)
    assert module.compute_score(**{**given, "solution_str": ""}, extra_info=extra) == EMPTY


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        (None, "'extra_info' must be an object"),
        ({"prompt": "why?"}, "no 'user_id'; it has 'prompt'"),
        ({"user_id": "anna"}, "no 'prompt'"),
        ({}, "it has nothing"),
        ({"user_id": "anna", "prompt": None}, "'prompt' must be text"),
    ],
)
def test_verl_rows_without_what_is_needed(scorer: Scorer, extra: Any, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        verl_compute_score(scorer)("mine", "x", "", extra)


@pytest.fixture
def server_url(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = openrlhf_server(scorer, end="<|end|>", port=0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/get_reward"
    server.shutdown()
    server.server_close()


def post(url: str, raw: bytes) -> Any:
    request = urllib.request.Request(url, raw, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def asked(n: int = 3) -> dict[str, list[Any]]:
    """What OpenRLHF sends: templated prompts, answers behind them with the end of turn unless they were cut short."""
    read = "<|user|>why?<|end|>\n<|assistant|>"
    labels: list[Any] = [
        json.dumps({"user_id": "anna", "prompt": "why?"}),
        {"user_id": "ben", "prompt": TALK, "user_text": "ben 1"},
        {"user_id": None, "prompt": "why?"},
    ]
    queries = [f"{read}{ANSWERS[0]}<|end|>", f"{read}{ANSWERS[1]}", f"{read}<|end|>"]
    return {"query": queries[:n], "prompts": [read] * n, "labels": labels[:n]}


def test_openrlhf_asks_over_http(scorer: Scorer, server_url: str) -> None:
    found = post(server_url, json.dumps(asked()).encode())
    expected = [one(scorer, "why?", ANSWERS[0], "anna"), one(scorer, "why?", ANSWERS[1], "ben", "ben 1"), EMPTY]
    assert found["rewards"] == pytest.approx(expected, abs=1e-4)
    assert (found["scores"], found["extra_logs"]) == (found["rewards"], {})


def test_openrlhf_asks_from_many_places_at_once(server_url: str) -> None:
    raw = json.dumps(asked()).encode()
    alone = post(server_url, raw)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: post(server_url, raw), range(8)):
            assert found == alone


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "utf-8"),
        (b"[1]", "the lists 'query', 'prompts' and 'labels'"),
        (json.dumps(asked() | {"labels": []}).encode(), "equally long"),
        (json.dumps(asked(1) | {"prompts": ["why?"]}).encode(), "'query[0]' does not begin with 'prompts[0]'"),
        (json.dumps(asked(1) | {"labels": ["42"]}).encode(), "'labels[0]' must be an object"),
        (json.dumps(asked(1) | {"labels": ["the answer"]}).encode(), "'labels[0]' is no JSON"),
        (json.dumps(asked(1) | {"labels": [{"prompt": "why?"}]}).encode(), "'labels[0]' has no 'user_id'"),
        (json.dumps(asked(1) | {"labels": [{"prompt": "why?", "user_id": 7}]}).encode(), "user ids are text"),
    ],
)
def test_openrlhf_is_told_what_is_wrong(server_url: str, raw: bytes, fault: str) -> None:
    with pytest.raises(HTTPError) as raised:
        post(server_url, raw)
    assert raised.value.code == 400
    assert fault in json.loads(raised.value.read())["error"]
    assert len(post(server_url, json.dumps(asked()).encode())["rewards"]) == 3  # and it lives on


def test_rewards_are_numbers(scorer: Scorer) -> None:
    found = trl_reward(scorer)(prompts=["why?"], completions=["x"], user_id=[None])
    assert torch.tensor(found).isfinite().all()
    json.dumps(found)
