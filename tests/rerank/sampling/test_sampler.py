"""The sampler against plain transformers: the same texts, however they are read."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prm.data.comparison import Message
from prm.errors import PrmError
from prm.models.backbones import resolve
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler
from tests.conftest import ARCHITECTURES, CHAT_TEMPLATE
from tests.rerank.sampling.plain import plain

PROMPT = "what of the quick brown fox and seven wizards?"
SHORT = Sampling(max_new_tokens=12)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sampler_of(backbone_of: Callable[..., str]) -> Callable[..., Sampler]:
    made: dict[tuple[str, bool], Sampler] = {}

    def get(architecture: str = "llama", chat: bool = True) -> Sampler:
        if (architecture, chat) not in made:
            made[architecture, chat] = Sampler.from_pretrained(backbone_of(architecture, chat=chat), CPU, "float32")
        return made[architecture, chat]

    return get


@pytest.fixture
def llama(sampler_of: Callable[..., Sampler]) -> Sampler:
    return sampler_of("llama")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(Sampling(12), id="default"),
        pytest.param(Sampling(12, temperature=2.5, top_p=1.0, seed=5), id="hot"),
        pytest.param(Sampling(12, temperature=0.3, top_p=0.4, seed=6), id="cautious"),
    ],
)
def test_samples_are_what_plain_transformers_draw(
    backbone_of: Callable[..., str], sampler_of: Callable[..., Sampler], architecture: str, sampling: Sampling
) -> None:
    expected, _ = plain(backbone_of(architecture), PROMPT, 4, sampling, ["<|eos|>", "<|end|>"])
    assert sampler_of(architecture).sample(PROMPT, 4, sampling) == expected
    assert len(set(expected)) > 1  # else the seed would not matter


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prompt", ["a", PROMPT], ids=["one-token", "several-tokens"])
def test_samples_without_a_chat_template(
    backbone_of: Callable[..., str], sampler_of: Callable[..., Sampler], architecture: str, prompt: str
) -> None:
    sampler = sampler_of(architecture, False)
    assert (len(sampler.tokenizer(prompt)["input_ids"]) == 1) == (prompt == "a")
    expected, _ = plain(backbone_of(architecture, chat=False), prompt, 4, SHORT, ["<|eos|>"])
    assert sampler.sample(prompt, 4, SHORT) == expected


class Says(torch.nn.Module):
    """An output head that wants to say the same tokens over and over."""

    def __init__(self, words: list[int], width: int):
        super().__init__()
        self.words, self.width, self.said = words, width, 0

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(*states.shape[:-1], self.width)
        scores[..., self.words[self.said % len(self.words)]] = 99.0
        self.said += 1
        return scores


@pytest.mark.parametrize("space", [" ", "\n"])
def test_white_space_that_a_template_writes_before_its_end_ends_no_answer(
    backbone_of: Callable[..., str], tmp_path: Path, space: str
) -> None:
    folder = tmp_path / "spaced"
    shutil.copytree(backbone_of("llama"), folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<|end|>", f"{space}<|end|>"))
    sampler = Sampler.from_pretrained(str(folder), CPU, "float32")
    said = sampler.tokenizer(f"fox{space}dog{space}<|end|>fox", add_special_tokens=False)["input_ids"]
    sampler.model.lm_head = Says(said, 336)
    drawn = sampler.generate([sampler.encode_prompt("why?")], 1, replace(SHORT, max_new_tokens=20))
    assert sampler.tokenizer.decode(drawn[0]) == f"fox{space}dog{space}<|end|>"
    assert sampler.decode(drawn) == [f"fox{space}dog"]


def test_a_model_without_an_end_is_warned_of_and_runs_to_its_limit(
    backbone_of: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "endless"
    shutil.copytree(backbone_of("llama", chat=False), folder)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"eos_token": "<|eos|>",', ""))
    sampler = Sampler.from_pretrained(str(folder), CPU, "float32")
    assert sampler.end_ids == []
    assert "no token" in caplog.text
    how = replace(SHORT, max_new_tokens=5, min_new_tokens=2)
    assert [len(ids) for ids in sampler.generate([sampler.encode_prompt("why?")], 3, how)] == [5, 5, 5]


def test_answers_end_at_the_end_of_turn(backbone_of: Callable[..., str], llama: Sampler) -> None:
    """Many short answers: some stop before the limit, at `<|end|>` or `<|eos|>`."""
    sampling = Sampling(max_new_tokens=20, temperature=20.0, top_p=1.0)
    expected, new = plain(backbone_of("llama"), PROMPT, 80, sampling, ["<|eos|>", "<|end|>"])
    assert {answer[-1] for answer in new if len(answer) < 20} == {1, 2}  # both ends occur
    assert llama.generate([llama.encode_prompt(PROMPT)], 80, sampling) == new
    assert llama.sample(PROMPT, 80, sampling) == expected


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
    assert grads == [False] * 2
    assert not llama.model.training


@pytest.mark.parametrize("n", [0, -3])
def test_a_number_of_answers_that_makes_no_sense_is_named(llama: Sampler, n: int) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(PrmError, match="number of responses"):
        llama.sample(PROMPT, n, SHORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_at_their_bounds_are_taken(llama: Sampler) -> None:
    assert len(llama.sample(PROMPT, 1, Sampling(max_new_tokens=1, temperature=1e-3, top_p=1.0))) == 1


def test_top_p_near_0_or_temperature_near_0_is_greedy(backbone_of: Callable[..., str], llama: Sampler) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(backbone_of("llama"))
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
    with pytest.raises(PrmError, match=r"492 .*21 .*512"):
        llama.sample(words, 2, Sampling(max_new_tokens=21))
    with pytest.raises(PrmError, match=r"\b604 tokens"):
        llama.sample("x" * 600, 2, SHORT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ids_are_words_of_the_model(sampler_of: Callable[..., Sampler], architecture: str) -> None:
    """The table is 336 wide; a reward model's user ids start there, and none may be drawn."""
    sampler = sampler_of(architecture)
    hot = Sampling(max_new_tokens=24, temperature=20.0, top_p=1.0)
    ids = {token for answer in sampler.generate([sampler.encode_prompt(PROMPT)], 64, hot) for token in answer}
    assert len(ids) > 200  # hot enough that every id had its chance
    assert max(ids) < sampler.model.get_input_embeddings().num_embeddings == 336


@pytest.mark.parametrize("chat", [True, False])
def test_a_single_user_message_is_plain_text(sampler_of: Callable[..., Sampler], chat: bool) -> None:
    sampler = sampler_of("llama", chat)
    assert sampler.sample((Message("user", PROMPT),), 3, SHORT) == sampler.sample(PROMPT, 3, SHORT)


def test_a_conversation_is_read_whole(backbone_of: Callable[..., str], llama: Sampler) -> None:
    """The same ids as one text with the template written out by hand, through a tokenizer without one."""
    turns = (Message("system", "be brief"), Message("user", "fox?"), Message("assistant", "lazy"), Message("user", "a"))
    text = "<|system|>be brief<|end|>\n<|user|>fox?<|end|>\n<|assistant|>lazy<|end|>\n<|user|>a<|end|>\n<|assistant|>"
    other = Sampler.from_pretrained(backbone_of("llama"), CPU, "float32")
    other.encoder.template = None
    sampling = replace(SHORT, max_new_tokens=6)
    assert llama.sample(turns, 4, sampling) == other.sample(text, 4, sampling)
    assert llama.sample(turns, 4, sampling) != llama.sample(turns[-1:], 4, sampling)


@pytest.mark.model
def test_smollm2_samples_as_plain_transformers_do() -> None:
    sampling = Sampling(max_new_tokens=8, temperature=0.2, top_p=0.9, seed=4)
    prompt = "Name a colour of the sky."
    expected, new = plain(resolve("smollm2-135m"), prompt, 2, sampling, ["<|im_end|>"])
    assert Sampler.from_pretrained("smollm2-135m", CPU, torch.float32).sample(prompt, 2, sampling) == expected
    assert all(len(text) > 3 for text in expected)
    assert len(new) == 2
