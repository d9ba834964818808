"""Token by token: prompts read once, answers that leave, random numbers that belong to an answer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import Gemma2Config, MistralConfig, TopPLogitsWarper

from rerank.sampling.config import Sampling
from rerank.sampling.decoding import Reader, choose
from rerank.sampling.sampler import Sampler
from rerank.sampling.shared_prefix_cache import ATTENTION, attend, can_share
from tests.architectures import save_family
from tests.conftest import ARCHITECTURES
from tests.rerank.sampling.plain import counted

PROMPT = "what of the quick brown fox and seven wizards?"


@pytest.fixture(scope="module")
def sampler_of(backbone_of: Callable[..., str]) -> Callable[[str], Sampler]:
    made: dict[str, Sampler] = {}

    def get(architecture: str) -> Sampler:
        if architecture not in made:
            made[architecture] = Sampler.from_pretrained(backbone_of(architecture), torch.device("cpu"), "float32")
        return made[architecture]

    return get


@pytest.fixture
def llama(sampler_of: Callable[[str], Sampler]) -> Sampler:
    return sampler_of("llama")


def copies(monkeypatch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    """From here on each answer has a copy of its prompt."""
    monkeypatch.setattr(sampler, "_shares", False)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_first_tokens_are_as_frequent_as_they_are_likely(llama: Sampler, top_p: float) -> None:
    """4,000 answers of one token against the model's own probabilities, by a chi-squared test."""
    ids = llama.encode_prompt(PROMPT)
    drawn = np.array(llama.generate([ids], 4000, Sampling(1, temperature=1.5, top_p=top_p)))[:, 0]
    with torch.no_grad():
        scores = llama.model(torch.tensor([ids])).logits[:, -1] / 1.5
    p = (scores if top_p == 1.0 else TopPLogitsWarper(top_p)(None, scores)).double().softmax(-1)[0].numpy()
    assert (p[drawn] > 0).all()
    often, found = p > 0.005, np.bincount(drawn, minlength=len(p))
    assert often.sum() > 5
    expected = np.append(p[often], p[~often].sum()) * 4000
    counted_up = np.append(found[often], found[~often].sum())
    assert stats.chisquare(counted_up[expected > 0], expected[expected > 0]).pvalue > 0.001


def test_a_flat_distribution_is_sorted_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the likeliest 256 tokens hold less than top_p; and where they are looked at 8 at a time."""
    scores = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0))
    u = torch.tensor([0.1, 0.5, 0.999], dtype=torch.float64)
    p = scores.double().softmax(-1)
    order = p.argsort(descending=True)
    mass = p.gather(1, order).cumsum(-1)
    assert bool((mass[:, 255] < 0.9).all())
    kept = mass.gather(1, (mass < 0.9).sum(-1, keepdim=True))
    expected = order.gather(1, (mass <= u[:, None] * kept).sum(-1, keepdim=True))[:, 0]
    assert choose(scores, u, Sampling(temperature=1.0, top_p=0.9)).tolist() == expected.tolist()
    sharp = Sampling(temperature=0.2, top_p=0.9)
    wide = choose(scores, u, sharp)
    monkeypatch.setattr("rerank.sampling.decoding._TOP", 8)
    assert choose(scores, u, sharp).tolist() == wide.tolist()


def test_tokens_without_probability_are_never_drawn() -> None:
    """At the very ends of the random numbers, too."""
    scores = torch.full((2, 6), -torch.inf)
    scores[:, 2:4] = 0.0
    u = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    for top_p in (1.0, 0.999999):
        assert sorted(choose(scores, u, Sampling(top_p=top_p)).tolist()) == [2, 3]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shared", [True, False])
def test_the_prompt_is_read_once_and_finished_answers_leave(
    sampler_of: Callable[[str], Sampler], architecture: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of the prompt; from then on a token of each answer that goes on, and no more."""
    sampler = sampler_of(architecture)
    if not shared:
        copies(monkeypatch, sampler)
    ids = sampler.encode_prompt(PROMPT)
    with counted(sampler) as calls:
        answers = sampler.generate([ids], 12, Sampling(max_new_tokens=30, temperature=20.0, top_p=1.0))
    lengths = [len(answer) for answer in answers]
    assert min(lengths) < max(lengths)
    steps = max(lengths) - 1
    assert calls == [(1, len(ids))] + [(sum(length > t + 1 for length in lengths), 1) for t in range(steps)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_prompts_are_as_good_as_copies(
    sampler_of: Callable[[str], Sampler], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three prompts of unequal length, asked for 2, 4 and 2 answers: seats stay empty and prompts drop out."""
    sampler = sampler_of(architecture)
    asked = [sampler.encode_prompt(prompt) for prompt in (PROMPT, "a", "a", "seven wizards")]
    sampling = Sampling(max_new_tokens=40, temperature=20.0, top_p=1.0, seed=3)
    assert can_share(sampler.model)
    shared = sampler.generate(asked, 2, sampling)
    copies(monkeypatch, sampler)
    assert sampler.generate(asked, 2, sampling) == shared
    assert min(map(len, shared)) < max(map(len, shared))


@pytest.mark.parametrize("name", ["Llama", "Mistral (sliding window)", "Mamba"])
def test_logits_of_answers_are_those_of_the_whole_text(tmp_path: Path, name: str) -> None:
    """To 1e-4, after answers and a prompt have left: shared prompts, copies of them, recurrent states."""
    sampler = Sampler.from_pretrained(save_family(name, tmp_path), torch.device("cpu"), torch.float32)
    prompts = [sampler.encode_prompt(PROMPT), sampler.encode_prompt("a")]
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randint(3, 300, (size,), generator=draw) for size in (4, 2))
    with torch.no_grad():
        reader = Reader(sampler.model, prompts, torch.tensor([0, 0, 0, 1]), 3, name == "Llama")
        reader.read(first)
        reader.keep(torch.tensor([0, 2]))
        reader.read(second)
        for i, row in enumerate((0, 2)):
            sequence = torch.tensor([[*prompts[0], int(first[row]), int(second[i])]])
            expected = sampler.model(sequence).logits[0, -1]
            torch.testing.assert_close(reader.logits[i], expected, atol=1e-4, rtol=1e-4)
    assert sampler.model.config._attn_implementation != ATTENTION  # what others use the model with is back


def test_attention_that_adds_something_is_refused() -> None:
    states = torch.ones(1, 1, 1, 4)
    with pytest.raises(NotImplementedError, match="softcap"):
        attend(torch.nn.Identity(), states, states, states, None, prompts=None, softcap=30.0)  # type: ignore[arg-type]


def test_who_can_share_prompts() -> None:
    whole = MistralConfig(sliding_window=None)
    for config, able in ((whole, True), (MistralConfig(sliding_window=64), False), (Gemma2Config(), False)):
        assert can_share(SimpleNamespace(config=config, _supports_attention_backend=True)) == able
    assert not can_share(SimpleNamespace(config=whole, _supports_attention_backend=False))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answer_k_is_the_same_for_every_n_and_in_any_company(
    sampler_of: Callable[[str], Sampler], architecture: str
) -> None:
    sampler = sampler_of(architecture)
    ids, other = sampler.encode_prompt(PROMPT), sampler.encode_prompt("why the fox?")
    sampling = Sampling(max_new_tokens=16, temperature=1.5)
    many = sampler.generate([ids], 9, sampling)
    assert len(set(map(tuple, many))) > 4
    for n in (1, 2, 5):
        assert sampler.generate([ids], n, sampling) == many[:n]
    assert sampler.generate([other, ids], 3, sampling)[3:] == many[:3]
    assert sampler.generate([ids, other, ids], 2, sampling)[4:] == many[2:4]  # asked again: the next ones
    assert sampler.generate([ids], 9, replace(sampling, max_new_tokens=8)) == [answer[:8] for answer in many]
    assert sampler.sample_batch([PROMPT] * 3, [None] * 3, sampling) == sampler.sample(PROMPT, 3, sampling)
