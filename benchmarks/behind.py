"""A training step of users behind a kept text, over one of users in front of it (the paper's place)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.ratio import Ratio
from benchmarks.scoring import words
from prm.comparison import Comparison
from prm.config import BackboneConfig, RewardConfig, TrainConfig, UserConfig
from prm.key_store import batches_of
from prm.start import encode_pairs, new_checkpoint
from prm.trainer import add_lora, build_trainer, to_dataset
from prm.users import UserIndex


def ratios(backbone: str = "smollm2-135m", pairs: int = 8, prompt: int = 40, answer: int = 60) -> Iterator[Ratio]:
    """CPU seconds of loss, gradients and batch with LoRA on 10 layers, both terms, the texts' keys on disk.

    Args:
        pairs: of a micro-batch; `prompt` and `answer` are words.
    """
    log = []
    for i in range(pairs):
        asked, *answers = (words(n, torch.Generator().manual_seed(1000 * i + n)) for n in (prompt, answer, answer + 1))
        log.append(Comparison(f"u{i % 10}", asked, chosen=answers[0], rejected=answers[1]))
    with TemporaryDirectory() as folder:
        behind, front = (_step(backbone, log, place, Path(folder)) for place in ("behind", "front"))
        yield Ratio(
            f"LoRA step, {pairs} pairs of {prompt} + {answer} words: behind a kept text / in front",
            behind,
            front,
            at_most=1 / 8,
            repeats=3,
            unit="CPU seconds",
        )


def _step(backbone: str, log: list[Comparison], place: Any, folder: Path) -> Callable[[], float]:
    config = TrainConfig(train="lora", users=UserConfig(tokens=4), backbone=BackboneConfig(backbone))
    config = replace(config, reward=RewardConfig("soft_prompt", place, frozen_text=place == "behind"))
    users = UserIndex.from_comparisons(log)
    checkpoint = new_checkpoint(_cut(config), users)
    model, encoder = checkpoint.model, checkpoint.encoder()
    rows = encode_pairs(encoder, users, log)
    with batches_of(model, [s for p in rows for s in (p.chosen, p.rejected)], 1.0, cache=True) as batch_of:
        add_lora(model, config.lora)
        trainer: Any = build_trainer(model, encoder.tokenizer, rows, rows, config, folder / place, batch_of)
    examples = list(to_dataset(rows))

    def step() -> float:
        started = time.process_time()
        trainer.compute_loss(model.train(), trainer.data_collator(examples)).backward()
        model.zero_grad()
        return time.process_time() - started

    return step


def _cut(config: TrainConfig) -> TrainConfig:
    """Read through 10 layers, as the configs for this place do; a smaller backbone is read whole."""
    layers = 10 if config.backbone.name == "smollm2-135m" else None
    return replace(config, backbone=replace(config.backbone, layers=layers))
