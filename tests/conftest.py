"""Fixtures: tiny random backbones with a tokenizer, so that no test needs a network."""

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
from prm.io.tables import write_jsonl
from prm.models import backbones
from prm.models.packing import can_pack

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards mix potions for an old king".split()  # noqa: SIM905
# one by default: for such small models, synchronising threads costs more than computing
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
disk._sync = lambda path: None  # syncing a thousand small files takes minutes
ARCHITECTURES = ("llama", "gpt_neox", "qwen2")


def build_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 320 ids; with `chat`, it has a chat template."""
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
    """A config of width 32 with a larger vocabulary than the tokenizer's, as in many real models."""
    shape: dict[str, Any] = {"vocab_size": 336, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if architecture == "gpt_neox":
        return GPTNeoXConfig(**shape, **heads)
    grouped: dict[str, Any] = {"num_key_value_heads": 2, "tie_word_embeddings": True}
    return (LlamaConfig if architecture == "llama" else Qwen2Config)(**shape, **heads, **grouped)


def save_backbone(folder: Path, architecture: str, seed: int = 0, chat: bool = True, layers: int = 2) -> str:
    """Save a tiny random causal language model with its tokenizer; returns the folder."""
    return save_random(folder, AutoModelForCausalLM, build_config(architecture, layers), seed, chat)


def save_random(folder: Path, auto_class: Any, config: PretrainedConfig, seed: int = 0, chat: bool = True) -> str:
    """Save a random model with a tokenizer; returns the folder. Large weights make the features of texts differ."""
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
    """Function from architecture, seed, chat template and depth to the folder of a tiny backbone, made once."""
    folders: dict[tuple[object, ...], str] = {}

    def get(architecture: str = "llama", seed: int = 0, chat: bool = True, layers: int = 2) -> str:
        key = (architecture, seed, chat, layers)
        if key not in folders:
            folder = tmp_path_factory.mktemp("-".join(map(str, key)))
            folders[key] = save_backbone(folder, architecture, seed, chat, layers)
        return folders[key]

    return get


@pytest.fixture
def tiny(backbone_of: Callable[..., str]) -> str:
    """Folder of the tiny Llama that most tests use."""
    return backbone_of("llama")


@pytest.fixture(autouse=True)
def _separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Give each test its own cache; tests of the embedded model keep the shared one."""
    if "model" not in request.keywords:
        monkeypatch.setenv("PRM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folder of each backbone whose weights are loaded, in turn."""
    folders: list[str] = []
    load_model = backbones.load_model

    def load(auto_class: Any, source: str, *args: Any) -> Any:
        folders.append(source)
        return load_model(auto_class, source, *args)

    monkeypatch.setattr(backbones, "load_model", load)
    return folders


class Clock:
    """Sets today's date, for this library and for transformers."""

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
            def today(cls) -> Any:
                return date.fromisoformat(day)

        self._patch.setattr("transformers.utils.chat_template_utils.datetime", Today)
        self._patch.setattr("prm.data.chat_template.date", Date)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    """Folder of 30 posts for the source `tldr_length`."""
    words = ["the", "quick", "fox", "jumps", "over", "a", "lazy", "dog"]
    rows = [
        {
            "prompt": f"SUBREDDIT: r/a\nTITLE: {words[i % 8]} {words[i // 8]}\n\nPOST: dog\n\nTL;DR:",
            "response_model": " ".join(words[: 2 + i % 3]),
            "response_reference": " ".join(words[i % 3 : 6 + i % 3]),
        }
        for i in range(30)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    return tmp_path


@pytest.fixture
def comparisons() -> list[Comparison]:
    """Comparisons of two opposed users and a mixed one on the same six pairs of a long and a short response."""
    out = []
    for i in range(6):
        long, short = " ".join(WORDS[i : i + 7]), " ".join(WORDS[i + 8 : i + 10])
        for user, likes_long in (("long", True), ("short", False), ("mixed", i % 2 == 0)):
            chosen, rejected = (long, short) if likes_long else (short, long)
            out.append(Comparison(user, f"what about {WORDS[i]}?", chosen, rejected))
    return out


def count_tokens(backbone: torch.nn.Module) -> list[int]:
    """A list to which each later pass of a backbone appends its number of tokens, padding included."""
    can_pack(backbone)
    counts: list[int] = []
    embedding = backbone.get_input_embeddings()  # type: ignore[operator]
    embedding.register_forward_pre_hook(lambda module, args: counts.append(args[0].numel()))
    return counts


def resign(run: Path) -> None:
    """Update the digests of a run's files, so that other checks must find what is wrong with them."""
    path = run / "config.json"
    config = json.loads(path.read_text()) | {"files": file_digests(run)}
    path.write_text(json.dumps(config | {"digest": digest_of_values(config)}))


def read_log(path: str | Path, source: str = "pairs", **settings: object) -> list[Comparison]:
    """The comparisons of a log."""
    config = FeedbackConfig(path=str(path), source=source, **settings)  # type: ignore[arg-type]
    return read_feedback(config).comparisons
