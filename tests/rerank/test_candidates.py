"""The sampler against plain transformers: the same texts, with the prompt read once instead of n times."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from prm.backbones import resolve
from prm.comparison import Message
from prm.errors import PrmError
from rerank.candidates import Sampler
from rerank.sampling import Sampling
from tests.conftest import ARCHITECTURES

PROMPT = "what of the quick brown fox and seven wizards?"
SHORT = Sampling(max_new_tokens=12)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sampler_of(backbone_of: Callable[..., str]) -> Callable[..., Sampler]:
    made: dict[tuple[str, bool], Sampler] = {}

    def get(architecture: str = "llama", chat: bool = True) -> Sampler:
        if (architecture, chat) not in made:
            made[architecture, chat] = Sampler.from_pretrained(backbone_of(architecture, chat=chat), CPU)
        return made[architecture, chat]

    return get


@pytest.fixture
def llama(sampler_of: Callable[..., Sampler]) -> Sampler:
    return sampler_of("llama")


def plain(folder: str, prompt: str, n: int, sampling: Sampling, ends: list[str]) -> tuple[list[str], Tensor]:
    """What a user of transformers alone would write: (texts, new ids); every copy of the prompt is read."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = prompt
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt")
    torch.manual_seed(sampling.seed)
    out = model.generate(
        input_ids=ids["input_ids"],
        attention_mask=ids["attention_mask"],
        num_return_sequences=n,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=tokenizer.convert_tokens_to_ids(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
    new = out[:, ids["input_ids"].shape[1] :]
    return [t.strip() for t in tokenizer.batch_decode(new, skip_special_tokens=True)], new


def drawn(sampler: Sampler, monkeypatch: pytest.MonkeyPatch, *args: Any) -> Tensor:
    """Ids that `generate` returns inside `sample`, prompt included."""
    seen: list[Tensor] = []
    generate = sampler.model.generate
    with monkeypatch.context() as patch:
        patch.setattr(sampler.model, "generate", lambda *a, **k: seen.append(generate(*a, **k)) or seen[-1])
        sampler.sample(*args)
    return seen[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(Sampling(20), id="default"),
        pytest.param(Sampling(20, temperature=2.5, top_p=1.0, seed=5), id="hot"),
        pytest.param(Sampling(20, temperature=0.3, top_p=0.4, seed=6), id="cautious"),
    ],
)
def test_samples_are_those_of_plain_generate(
    backbone_of: Callable[..., str], sampler_of: Callable[..., Sampler], architecture: str, sampling: Sampling
) -> None:
    expected, _ = plain(backbone_of(architecture), PROMPT, 5, sampling, ["<|eos|>", "<|end|>"])
    assert sampler_of(architecture).sample(PROMPT, 5, sampling) == expected
    assert len(set(expected)) > 1  # else the seed would not matter


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prompt", ["a", PROMPT], ids=["one-token", "several-tokens"])
def test_samples_are_those_of_plain_generate_without_a_chat_template(
    backbone_of: Callable[..., str], sampler_of: Callable[..., Sampler], architecture: str, prompt: str
) -> None:
    """A prompt of one token leaves nothing to read ahead."""
    sampler = sampler_of(architecture, False)
    assert (len(sampler.tokenizer(prompt)["input_ids"]) == 1) == (prompt == "a")
    expected, _ = plain(backbone_of(architecture, chat=False), prompt, 4, SHORT, ["<|eos|>"])
    assert sampler.sample(prompt, 4, SHORT) == expected


def test_answers_end_at_the_end_of_turn(
    backbone_of: Callable[..., str], llama: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many short answers: some stop before the limit, at `<|end|>` or `<|eos|>`, and are padded from there."""
    sampling = Sampling(max_new_tokens=40, temperature=3.0, top_p=1.0)
    expected, new = plain(backbone_of("llama"), PROMPT, 40, sampling, ["<|eos|>", "<|end|>"])
    assert {1, 2} <= set(new.flatten().tolist())  # both ends occur, before the last position too
    assert (new[:, -1] == 0).any()
    ids = drawn(llama, monkeypatch, PROMPT, 40, sampling)
    assert torch.equal(ids[:, -new.shape[1] :], new)
    assert llama.sample(PROMPT, 40, sampling) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prompt_is_read_once(
    sampler_of: Callable[..., Sampler], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of all but the last prompt token; from then on one token per answer and step."""
    sampler = sampler_of(architecture)
    turn = [{"role": "user", "content": PROMPT}]
    text = sampler.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    length = len(sampler.tokenizer(text)["input_ids"])
    calls: list[tuple[int, ...]] = []

    def note(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(tuple((args[0] if args else kwargs["input_ids"]).shape))  # by place or by name

    handle = sampler.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        ids = drawn(sampler, monkeypatch, PROMPT, 6, SHORT)
    finally:
        handle.remove()
    steps = ids.shape[1] - length
    assert ids.shape[0] == 6
    assert 1 < steps <= 12
    assert calls == [(1, length - 1)] + [(6, 1)] * steps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_seed_same_answers_whatever_came_before(sampler_of: Callable[..., Sampler], architecture: str) -> None:
    sampler = sampler_of(architecture)
    first = sampler.sample(PROMPT, 4, SHORT)
    torch.rand(7)
    assert sampler.sample("another?", 4, SHORT) != first
    assert sampler.sample(PROMPT, 4, replace(SHORT, seed=1)) != first
    assert sampler.sample(PROMPT, 4, SHORT) == first


def test_global_random_state_is_untouched(llama: Sampler) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    llama.sample(PROMPT, 3, SHORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_gradient_is_kept(llama: Sampler) -> None:
    """What a prompt left in the cache must not hold a graph, and the weights get no gradient."""
    grads: list[bool] = []
    handle = llama.model.register_forward_hook(lambda m, a, out: grads.append(out.logits.requires_grad))
    try:
        llama.sample(PROMPT, 2, replace(SHORT, max_new_tokens=2))
    finally:
        handle.remove()
    assert grads == [False] * 3
    assert not llama.model.training


@pytest.mark.parametrize(
    ("n", "changes", "named"),
    [
        pytest.param(0, {}, "number of answers must be at least 1, got 0", id="n-0"),
        pytest.param(-3, {}, "number of answers must be at least 1, got -3", id="n-negative"),
        pytest.param(2, {"temperature": 0.0}, "temperature must be .* got 0.0", id="temperature-0"),
        pytest.param(2, {"temperature": -1.0}, "temperature must be .* got -1.0", id="temperature-negative"),
        pytest.param(2, {"temperature": float("nan")}, "temperature must be .* got nan", id="temperature-nan"),
        pytest.param(2, {"top_p": 0.0}, "top_p must lie .* got 0.0", id="top_p-0"),
        pytest.param(2, {"top_p": 1.1}, "top_p must lie .* got 1.1", id="top_p-above-1"),
        pytest.param(2, {"top_p": float("nan")}, "top_p must lie .* got nan", id="top_p-nan"),
        pytest.param(2, {"max_new_tokens": 0}, "max_new_tokens must be .* got 0", id="max_new_tokens-0"),
        pytest.param(2, {"seed": 2**70}, "seed", id="seed-beyond-64-bits"),
    ],
)
def test_settings_that_make_no_sense_are_named(llama: Sampler, n: int, changes: dict[str, Any], named: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(PrmError, match=named):
        llama.sample(PROMPT, n, replace(SHORT, **changes))
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_at_their_bounds_are_taken(llama: Sampler) -> None:
    assert len(llama.sample(PROMPT, 1, Sampling(max_new_tokens=1, temperature=1e-3, top_p=1.0))) == 1


def test_top_p_near_0_or_temperature_near_0_is_greedy(backbone_of: Callable[..., str], llama: Sampler) -> None:
    tokenizer = AutoTokenizer.from_pretrained(backbone_of("llama"))
    model = AutoModelForCausalLM.from_pretrained(backbone_of("llama"), dtype=torch.float32)
    text = f"<|user|>{PROMPT}<|end|>\n<|assistant|>"  # the template by hand
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    expected = tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()
    assert expected
    for sampling in (Sampling(8, temperature=1.0, top_p=1e-6), Sampling(8, temperature=1e-4, top_p=1.0)):
        assert llama.sample(PROMPT, 2, sampling) == [expected] * 2


def test_prompt_and_answer_must_fit_the_window(llama: Sampler) -> None:
    """The window is 512. `x` takes one token, the template three and the new line behind `<|end|>` one."""
    words = "x" * 488
    length = len(llama.tokenizer(f"<|user|>{words}<|end|>\n<|assistant|>")["input_ids"])
    assert length == 492
    assert len(llama.sample(words, 2, Sampling(max_new_tokens=20))) == 2  # 492 + 20 = 512
    with pytest.raises(PrmError, match=r"prompt of 492 tokens and an answer of 21 do not fit .* window of 512"):
        llama.sample(words, 2, Sampling(max_new_tokens=21))
    with pytest.raises(PrmError, match="prompt of 604 tokens"):
        llama.sample("x" * 600, 2, SHORT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ids_are_words_of_the_model(
    sampler_of: Callable[..., Sampler], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is 336 wide; a reward model's user ids start there, and none may be drawn."""
    sampler = sampler_of(architecture)
    ids = drawn(sampler, monkeypatch, PROMPT, 64, Sampling(max_new_tokens=24, temperature=20.0, top_p=1.0))
    assert ids.shape[0] == 64
    assert len(ids.unique()) > 200  # hot enough that every id had its chance
    assert int(ids.max()) < sampler.model.get_input_embeddings().num_embeddings == 336


@pytest.mark.parametrize("chat", [True, False])
def test_a_single_user_message_is_plain_text(sampler_of: Callable[..., Sampler], chat: bool) -> None:
    sampler = sampler_of("llama", chat)
    assert sampler.sample((Message("user", PROMPT),), 3, SHORT) == sampler.sample(PROMPT, 3, SHORT)


def test_a_conversation_is_read_whole(backbone_of: Callable[..., str], llama: Sampler) -> None:
    """The same ids as one text with the template written out by hand, through a tokenizer without one."""
    turns = (Message("system", "be brief"), Message("user", "fox?"), Message("assistant", "lazy"), Message("user", "a"))
    text = "<|system|>be brief<|end|>\n<|user|>fox?<|end|>\n<|assistant|>lazy<|end|>\n<|user|>a<|end|>\n<|assistant|>"
    other = Sampler.from_pretrained(backbone_of("llama"), CPU)
    other.tokenizer.chat_template = None
    sampling = replace(SHORT, max_new_tokens=6)
    assert llama.sample(turns, 4, sampling) == other.sample(text, 4, sampling)
    assert llama.sample(turns, 4, sampling) != llama.sample(turns[-1:], 4, sampling)


@pytest.mark.model
def test_smollm2_samples_as_plain_generate_does() -> None:
    sampling = Sampling(max_new_tokens=8, temperature=0.2, top_p=0.9, seed=4)
    prompt = "Name a colour of the sky."
    expected, new = plain(resolve("smollm2-135m"), prompt, 2, sampling, ["<|im_end|>"])
    assert Sampler.from_pretrained("smollm2-135m", CPU).sample(prompt, 2, sampling) == expected
    assert all(len(text) > 3 for text in expected)
    assert new.shape == (2, 8)
