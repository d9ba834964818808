"""Which dtype decodes faster on this machine: measured once per generator, and kept."""

import json
import logging
import os
import platform
import time
from pathlib import Path

import torch

from prm.backbones import cache_dir, choose_dtype
from prm.causal import Policy
from prm.checkpoint import load_policy
from prm.files import write_json
from rerank.decoding import Reader

logger = logging.getLogger(__name__)

_SMALL = 30_000_000  # parameters below which nothing is worth a measurement
_WORTH = 1.2  # times faster that bfloat16 must be: float32 is exact
_PROMPT, _ANSWERS, _STEPS = 300, 16, 8


def decoding_dtype(name: str, device: torch.device) -> torch.dtype:
    """float32, or bfloat16 where this machine computes in it and decodes with this generator clearly faster.

    The times are kept in the cache folder; without them a measurement takes some seconds.
    """
    if choose_dtype("auto", device) == torch.float32:
        return torch.float32
    file = cache_dir() / "decoding.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    place = str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name
    key = f"{place} | {device} | {platform.node()} | {os.cpu_count()} | {torch.get_num_threads()} | {torch.__version__}"
    if key not in known:
        policy = load_policy(name, device, torch.float32).model
        if sum(p.numel() for p in policy.parameters()) < _SMALL:
            return torch.float32
        seconds = {"float32": seconds_per_token(policy), "bfloat16": seconds_per_token(policy.to(torch.bfloat16))}
        known[key] = seconds
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
        told = ", ".join(f"{dtype} {1000 * taken:.0f}" for dtype, taken in seconds.items())
        logger.info("decoding with %s, milliseconds for a token of each of %d answers: %s", name, _ANSWERS, told)
    return torch.bfloat16 if known[key]["bfloat16"] * _WORTH < known[key]["float32"] else torch.float32


@torch.no_grad()
def seconds_per_token(policy: Policy) -> float:
    """The fastest of some steps that read a token of each of 16 answers to a prompt of 300 tokens."""
    length = min(_PROMPT, policy.config.get_text_config().max_position_embeddings - _STEPS)
    prompt = [i % policy.vocab_size for i in range(length)]
    reader = Reader(policy.backbone, [prompt], torch.zeros(_ANSWERS, dtype=torch.long), _STEPS)
    seconds = []
    for _ in range(_STEPS):
        started = time.perf_counter()
        reader.read(reader.logits.argmax(-1))
        float(reader.logits[0, 0])  # an accelerator is done when a number is there
        seconds.append(time.perf_counter() - started)
    return min(seconds)
