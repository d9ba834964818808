"""The cost of loss and gradients on full sequences, against packs that share common tokens."""

from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch

from benchmarks.ratio import Ratio
from benchmarks.scoring import Dtype, answers_of, words
from prm.config import LoraSettings, RewardModelConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.data.encoding import pad
from prm.models.lora import add_lora
from prm.training.losses import personalized_bradley_terry
from prm.training.setup import encode_pairs, new_checkpoint
from prm.users.index import UserIndex

_MODELS = {
    "soft prompt of 10 as prefix": (UserConfig(num_virtual_tokens=10), RewardModelConfig("soft_prompt", "prefix")),
    "soft prompt of 10 as suffix": (UserConfig(num_virtual_tokens=10), RewardModelConfig("soft_prompt", "suffix")),
    "linear heads": (UserConfig(), RewardModelConfig("linear_head")),
}


def ratios(
    backbone: str = "smollm2-135m", dtype: Dtype = "bfloat16", size: float = 1.0, pairs: int = 4, layers: int = 10
) -> Iterator[Ratio]:
    """Full sequences over packs, with LoRA and both terms of the loss.

    Args:
        size: of all texts, as a share of the size that the bars are set for.
        pairs: in a micro-batch, each with its own prompt.
        layers: of the backbone; each costs the same on both sides.
    """
    for name, (users, reward) in _MODELS.items():
        for prompt, bar in ((300, 1.5), (0, 1.0)):
            config = TrainConfig(train="lora", users=users, reward=reward)
            config.backbone.name, config.backbone.dtype, config.backbone.layers = backbone, dtype, layers
            step = _step(config, pairs, int(prompt * size), int(60 * size))
            prompts = f"prompts of {prompt}" if prompt else "prompts of one word"
            yield Ratio(
                f"training, {name}, {prompts}, responses of 60, {dtype}: whole sequences / packs",
                _full_sequences(step),
                step,
                at_least=bar,
                repeats=3,
            )


def _step(config: TrainConfig, pairs: int, prompt: int, response: int) -> Callable[[], object]:
    """Loss and gradients of a micro-batch; lengths in words of one token each."""
    draw = torch.Generator().manual_seed(0)
    responses = answers_of(2 * pairs, response)
    log = [Comparison(f"u{i}", words(prompt, draw), responses[2 * i], responses[2 * i + 1]) for i in range(pairs)]
    users = UserIndex.from_comparisons(log)
    checkpoint = new_checkpoint(config, users)
    model, encoded = checkpoint.model, encode_pairs(checkpoint.encoder(), users, log)
    add_lora(model, LoraSettings())
    batch = pad([getattr(pair, side) for side in ("chosen", "rejected") for pair in encoded])

    def run() -> None:
        model.train().zero_grad()
        rewards = model(*batch, terms="both")
        assert rewards.user is not None
        assert rewards.generic is not None
        margins = [first - second for first, second in (rewards.user.chunk(2), rewards.generic.chunk(2))]
        personalized_bradley_terry(margins[0], margins[1], torch.ones(pairs), config.alpha).mean().backward()

    return run


def _full_sequences(step: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        with patch("prm.models.reward_model.can_pack", return_value=False):
            step()

    return run
