"""`BestOfN` around every kind of generator: the scorer's best of what was sampled, sorted by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prm.errors import PrmError
from prm.io.endpoint import EndpointError
from prm.io.tables import write_jsonl
from rerank import BestOfN, BestResponse, Endpoint, Reranker, Sampler, Sampling
from tests.endpoint_server import FakeEndpoint, Sent, choices
from tests.planted import opposed_people
from tests.tiny_runs import config_of, train_any

PROMPT = "what of fox potions?"
HOW = Sampling(max_new_tokens=6)
SAID = [("an old fox", "stop"), ("", "stop"), ("the king mixes", "length"), ("an old fox", "length"), ("dogs", "stop")]


@pytest.fixture(scope="module")
def reranker(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    """Of p0, who likes kings, and p1, who does not."""
    folder = tmp_path_factory.mktemp("best-of-n")
    write_jsonl(folder / "log.jsonl", opposed_people(20, 0, people=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        run = train_any("bayes", config_of("bayes", backbone_of("llama"), folder))
    return Reranker.from_pretrained(run, device="cpu")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("user", ["p0", "p1", None, "zoe"])
def test_the_best_of_an_endpoints_responses(reranker: Reranker, user: str | None) -> None:
    """Equal ones are one that was sampled twice and once ended; the empty one is left out."""
    with FakeEndpoint(lambda body, number: choices(SAID)) as server:
        best = BestOfN(reranker, server.url, n=5).generate(PROMPT, user=user)
    texts = ["an old fox", "the king mixes", "dogs"]
    rewards = dict(zip(texts, reranker.scorer.score(PROMPT, texts, user).tolist(), strict=True))
    expected = [
        {"corpus_id": i, "text": text, "score": rewards[text], "ended": i != 1, "times": 2 if i == 0 else 1}
        for i, text in enumerate(texts)
    ]
    expected.sort(key=lambda candidate: -float(str(candidate["score"])))
    assert best.candidates == expected
    assert (best.text, best.score, best.ended) == tuple(expected[0][key] for key in ("text", "score", "ended"))


def test_it_shows_what_ranks_and_what_samples(reranker: Reranker, tiny: str) -> None:
    shown = repr(BestOfN(reranker, lambda prompt, n, user: ["an old fox"] * n, n=3))
    assert len(shown.splitlines()) == 1
    for part in ("'bayes'", "num_users=2", tiny, "'best'", "Function", "n=3"):
        assert part in shown


def test_opposed_users_get_different_responses(reranker: Reranker) -> None:
    with FakeEndpoint(lambda body, number: choices(SAID)) as server:
        best_of = BestOfN(reranker, Endpoint(server.url, "tiny"), n=5)
        both = best_of.generate_batch([PROMPT, PROMPT], ["p0", "p1"])
        assert [best.text for best in both] == ["the king mixes", best_of.generate(PROMPT, "p1").text]
        assert both[0].text != both[1].text


def test_all_local_generators_sample_alike(reranker: Reranker, tiny: str) -> None:
    """A name, a sampler, and a model with its tokenizer, in float32: what `Sampler.sample` gives for it."""
    sampler = Sampler.from_pretrained(tiny, torch.device("cpu"), "float32")
    model = AutoModelForCausalLM.from_pretrained(tiny, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny, trust_remote_code=False)
    sampled = {text for text in sampler.sample(PROMPT, 6, HOW) if text}
    assert len(sampled) > 2
    found: list[BestResponse] = []
    for generator in (tiny, sampler, (model, tokenizer)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("prm.models.backbones._cpu_has_bfloat16", lambda: False)
            found.append(BestOfN(reranker, generator, n=6, sampling=HOW).generate(PROMPT, user="p0"))
    assert {candidate["text"] for candidate in found[0].candidates} == sampled
    assert found[0] == found[1] == found[2]
    assert found[0].ended in (True, False)


def test_a_model_in_memory_stays_as_it_is(reranker: Reranker, tiny: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny, attention_dropout=0.5, trust_remote_code=False).train()
    tokenizer = AutoTokenizer.from_pretrained(tiny, trust_remote_code=False)
    embedding, ids = model.get_input_embeddings(), torch.tensor([[5, 6, 7]])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    BestOfN(reranker, (model, tokenizer), n=2, sampling=HOW).generate(PROMPT)
    assert model.get_input_embeddings() is embedding
    assert model.training
    assert model.config.attention_dropout == 0.5
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model(ids, labels=ids).loss.backward()
    assert embedding.weight.grad is not None


def test_a_function_is_asked_with_prompt_number_and_user(reranker: Reranker) -> None:
    asked: list[Any] = []

    def generate(prompt: Any, n: int, user: str | None) -> list[str]:
        asked.append((prompt, n, user))
        return ["an old fox", "the king mixes"]

    best_of = BestOfN(reranker, generate, n=3)
    best = best_of.generate([{"role": "user", "content": PROMPT}], user="p0")
    assert (best.text, best.ended) == ("the king mixes", None)
    best_of.generate(PROMPT)
    assert asked == [([{"role": "user", "content": PROMPT}], 3, "p0"), (PROMPT, 3, None)]


@pytest.mark.parametrize(
    ("generator", "fault"),
    [
        (lambda *asked: "one text", "list"),
        (lambda *asked: ["a", 3], "list of texts"),
        (lambda *asked: ["", " "], "every sampled response is empty"),
        (7, "'generator' must be"),
        ("./none", "./none"),
    ],
    ids=["text", "number", "empty", "number", "path"],
)
def test_what_is_no_generator_is_refused(reranker: Reranker, generator: Any, fault: str) -> None:
    with pytest.raises(PrmError, match=fault):
        BestOfN(reranker, generator, n=2).generate(PROMPT)
    with pytest.raises(PrmError, match="'n'"):
        BestOfN(reranker, lambda *asked: ["a"], n=0)


def test_a_model_without_its_tokenizer_is_no_function(reranker: Reranker, tiny: str) -> None:
    with pytest.raises(PrmError, match="tokenizer"):
        BestOfN(reranker, AutoModelForCausalLM.from_pretrained(tiny, trust_remote_code=False))


def test_faults_of_the_endpoint_are_raised(reranker: Reranker) -> None:
    with FakeEndpoint(lambda body, number: Sent(400, '{"error": {"message": "too long"}}')) as server:
        best_of = BestOfN(reranker, server.url, n=2)
        with pytest.raises(PrmError, match=f"{server.url}: HTTP 400: 'too long'"):
            best_of.generate(PROMPT)
        server.play = lambda body, number: Sent(401)
        with pytest.raises(EndpointError, match=f"{server.url}: HTTP 401"):
            best_of.generate(PROMPT)
        server.play = lambda body, number: choices([(None, "length")] * 2)
        with pytest.raises(PrmError, match="max_new_tokens"):
            best_of.generate(PROMPT)
