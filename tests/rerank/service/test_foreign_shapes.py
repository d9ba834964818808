"""The shapes of other products: Cohere's client, Jina, OpenRLHF, verl and TRL, against the service on a real port."""

import asyncio
import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import cohere
import httpx
import pytest
from cohere.core.request_options import RequestOptions
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from tests.paths import ROOT
from tests.rerank.service.live import serving
from tests.rerank.service.test_engine import KING, MIX, NONE, PROMPT

TEXTS = [KING, NONE, MIX]
ROWS = [(KING, "p0"), (NONE, "p1"), ("", "p1"), (MIX, None)]


@pytest.fixture
def url(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(build_app(engine)) as url:
        yield url


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RERANK_API_KEY", "none")
    return "none"


@pytest.mark.parametrize("client_of", [cohere.Client, cohere.ClientV2], ids=["v1", "v2"])
def test_coheres_client_ranks_for_users(
    engine: Engine, url: str, key: str, client_of: Callable[..., cohere.Client]
) -> None:
    client = client_of(api_key=key, base_url=url)
    for user, best in (("p0", 0), ("p1", 1)):
        expected = engine.rank("", PROMPT, TEXTS, user)
        options: RequestOptions = {"additional_body_parameters": {"user": user}}
        reply = client.rerank(model="any", query=PROMPT, documents=TEXTS, top_n=2, request_options=options)
        assert [result.index for result in reply.results] == expected.order[:2]
        assert [r.relevance_score for r in reply.results] == [expected.relevance[i] for i in expected.order[:2]]
        assert reply.results[0].index != 1 - best
        assert reply.meta is not None
        assert reply.meta.api_version is not None
        assert reply.id is not None
        assert reply.meta.api_version.version == ("1" if client_of is cohere.Client else "2")
        seen = [text if i in expected.order[:2] else None for i, text in enumerate(TEXTS)]
        assert engine.shown_to("", user, reply.id) == (PROMPT, seen)
    with pytest.raises(cohere.errors.UnprocessableEntityError):
        client.rerank(model="any", query=PROMPT, documents=[])
    with pytest.raises(cohere.errors.UnauthorizedError):
        client_of(api_key="prm-unknown", base_url=url).rerank(model="any", query=PROMPT, documents=TEXTS)


def test_documents_with_fields_and_jinas_shape(url: str, key: str) -> None:
    client = cohere.Client(api_key=key, base_url=url)
    documents = [{"text": text, "title": "t"} for text in TEXTS]
    first = client.rerank(model="any", query=PROMPT, documents=documents, return_documents=True).results[0]
    assert first.document is not None
    assert first.document.text == TEXTS[first.index]
    with pytest.raises(cohere.errors.BadRequestError, match="rank_fields"):
        client.rerank(model="any", query=PROMPT, documents=documents, rank_fields=["title"])
    body = {"model": "jina-reranker-v2", "query": PROMPT, "documents": TEXTS, "top_n": 1, "return_documents": True}
    reply = httpx.post(
        f"{url}/v1/rerank", json=body | {"user": "p0"}, headers={"Authorization": f"Bearer {key}"}
    ).json()
    (one,) = reply["results"]
    assert one["document"] == {"text": TEXTS[one["index"]]}
    assert isinstance(reply["usage"]["total_tokens"], int)


def test_openrlhf_sends_queries_and_gets_rewards(engine: Engine, url: str, key: str) -> None:
    """What `SingleTurnAgentExecutor` posts and reads: the policy's template is left out, labels say whose row it is."""
    head = "<|user|>what?<|assistant|>"
    labels = [{"prompt": PROMPT, "user_id": user} for _, user in ROWS]
    body = {
        "query": [f"{head}{text}</s>" for text, _ in ROWS],
        "prompts": [head] * len(ROWS),
        "labels": [json.dumps(labels[0]), *labels[1:]],
    }
    headers, end = {"Authorization": f"Bearer {key}"}, "</s>"
    reply = httpx.post(f"{url}/v1/score", params={"empty": -10, "end": end}, json=body, headers=headers).json()
    scores = [engine.score_users("", PROMPT, [text], [user])[0][0] if text else -10.0 for text, user in ROWS]
    assert reply["rewards"] == pytest.approx(scores, abs=1e-5)
    assert reply == {"rewards": reply["rewards"], "scores": reply["rewards"], "extra_logs": {}}
    wrong: list[dict[str, object]] = [
        {"prompts": ["another"] * 4},
        {"prompts": [head]},
        {"labels": ["4"] * 4},
        {"labels": [{"prompt": PROMPT}] * 4},
    ]
    for fields in wrong:
        answer = httpx.post(f"{url}/v1/score?empty=-10", json=body | fields, headers=headers)
        assert answer.status_code == 400
    others: list[object] = [[], 3, None, "query"]
    for body_of_another_type in others:
        assert httpx.post(f"{url}/v1/score", json=body_of_another_type, headers=headers).status_code == 422
    assert httpx.post(f"{url}/v1/score", params={"end": end}, json=body, headers=headers).status_code == 400  # empty


def test_verls_reward_loop_asks_row_by_row(engine: Engine, url: str, key: str) -> None:
    compute_score = runpy.run_path(str(ROOT / "examples/service_rewards.py"))["compute_score"]

    async def all_rows() -> list[float]:
        rows = [
            compute_score(
                "any", text, None, {"prompt": [{"role": "user", "content": PROMPT}], "user_id": user}, url=url
            )
            for text, user in ROWS
        ]
        return await asyncio.gather(*rows)

    expected = [engine.score_users("", PROMPT, [text], [user])[0][0] if text else -10.0 for text, user in ROWS]
    assert asyncio.run(all_rows()) == pytest.approx(expected, abs=1e-5)


def test_trl_trains_on_asynchronous_rewards(
    engine: Engine, url: str, key: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of GRPO on a tiny model: every reward that it logs is the service's for that row's user."""
    reward = runpy.run_path(str(ROOT / "examples/service_rewards.py"))["trl_reward"](url)
    seen: list[tuple[str, str | None, float]] = []

    async def noted(
        prompts: list[str], completions: list[str], user_id: list[str | None], **more: object
    ) -> list[float]:
        rewards = await reward(prompts=prompts, completions=completions, user_id=user_id, **more)
        seen.extend(zip(completions, user_id, rewards, strict=True))
        return rewards

    data = Dataset.from_list([{"prompt": PROMPT, "user_id": user} for user in ("p0", "p1", None, "p0")])
    config = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        max_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = GRPOTrainer(tiny, reward_funcs=noted, args=config, train_dataset=data)  # type: ignore[arg-type]
    trainer.train()
    assert len(seen) == 8
    for text, user, found in seen:
        assert found == pytest.approx(
            engine.score_users("", PROMPT, [text], [user])[0][0] if engine.scorer.reader.has_tokens(text) else -10.0,
            abs=1e-5,
        )
    assert any("reward" in row for row in trainer.state.log_history)
