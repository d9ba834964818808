"""Tiny random backbones with a tokenizer of their own, so that no test needs a network."""

import json
import os
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.io import disk
from prm.io.digests import digest_of_values, file_digests
from prm.models.packing import can_pack

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards mix potions for an old king".split()  # noqa: SIM905
# one, unless asked for more: threads that wait for each other cost more than such small models compute
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
disk._sync = lambda path: None  # tests fear no power cut, and a thousand small files take minutes to reach a disk
ARCHITECTURES = ("llama", "gpt_neox", "qwen2")


def build_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 320 ids; with `chat`, one that has a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|eos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|eos|>",
        additional_special_tokens=special[2:],
        chat_template=CHAT_TEMPLATE if chat else None,
    )


def build_config(architecture: str, layers: int = 2) -> LlamaConfig | GPTNeoXConfig | Qwen2Config:
    """A config of width 32 whose vocabulary is wider than the tokenizer's, as in many real models."""
    shape = {"vocab_size": 336, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 512, "eos_token_id": 1, "pad_token_id": 0}
    if architecture == "gpt_neox":
        return GPTNeoXConfig(**shape, **heads)
    grouped = {"num_key_value_heads": 2, "tie_word_embeddings": True}
    return (LlamaConfig if architecture == "llama" else Qwen2Config)(**shape, **heads, **grouped)


def save_backbone(folder: Path, architecture: str, seed: int = 0, chat: bool = True, layers: int = 2) -> str:
    """A tiny random causal language model with its tokenizer, as a folder that loads like any other."""
    return save_random(folder, AutoModelForCausalLM, build_config(architecture, layers), seed, chat)


def save_random(folder: Path, auto_class: Any, config: PretrainedConfig, seed: int = 0, chat: bool = True) -> str:
    """A random model of that class with a tokenizer, as a folder; large weights, or every text would read alike."""
    torch.manual_seed(seed)
    model = auto_class.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    model.save_pretrained(folder)
    build_tokenizer(chat).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def backbone_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Folder of a tiny backbone by architecture, seed, chat template and depth; each is made once."""
    made: dict[tuple[object, ...], str] = {}

    def get(architecture: str = "llama", seed: int = 0, chat: bool = True, layers: int = 2) -> str:
        key = (architecture, seed, chat, layers)
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(map(str, key)))
            made[key] = save_backbone(folder, architecture, seed, chat, layers)
        return made[key]

    return get


@pytest.fixture
def tiny(backbone_of: Callable[..., str]) -> str:
    """Folder of the tiny Llama that most tests use."""
    return backbone_of("llama")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Features of one test are not there for the next; the embedded model's copy is left where it is."""
    if "model" not in request.keywords:
        monkeypatch.setenv("PRM_CACHE", str(tmp_path / "cache"))


class Clock:
    """Moves the day, for us and for transformers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._patch = monkeypatch

    def set(self, day: str) -> None:
        class Today(datetime):
            @classmethod
            def today(cls) -> "Today":
                return cls.fromisoformat(day)

            @classmethod
            def now(cls, tz: object = None) -> "Today":
                return cls.fromisoformat(day)

        class Date(date):
            @classmethod
            def today(cls) -> date:
                return date.fromisoformat(day)

        self._patch.setattr("transformers.utils.chat_template_utils.datetime", Today)
        self._patch.setattr("prm.data.chat_template.date", Date)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def comparisons() -> list[Comparison]:
    """Two opposed people and one between them, who judge the same six pairs: longer against shorter."""
    out = []
    for i in range(6):
        long, short = " ".join(WORDS[i : i + 7]), " ".join(WORDS[i + 8 : i + 10])
        for user, likes_long in (("long", True), ("short", False), ("mixed", i % 2 == 0)):
            chosen, rejected = (long, short) if likes_long else (short, long)
            out.append(Comparison(user, f"what about {WORDS[i]}?", chosen, rejected))
    return out


def count_tokens(backbone: torch.nn.Module) -> list[int]:
    """Tokens, padding included, that a backbone is given in each of its passes from now on, trying it out aside."""
    can_pack(backbone)
    counts: list[int] = []
    embedding = backbone.get_input_embeddings()  # type: ignore[operator]
    embedding.register_forward_pre_hook(lambda module, args: counts.append(args[0].numel()))
    return counts


def resign(run: Path) -> None:
    """Write the digests of a run's files as they are now, so that what is wrong with them is found by other means."""
    path = run / "config.json"
    config = json.loads(path.read_text()) | {"files": file_digests(run)}
    path.write_text(json.dumps(config | {"digest": digest_of_values(config)}))


def read_log(path: str | Path, source: str = "pairs", **settings: object) -> list[Comparison]:
    """The comparisons of a log."""
    config = FeedbackConfig(path=str(path), source=source, **settings)  # type: ignore[arg-type]
    return read_feedback(config).comparisons
