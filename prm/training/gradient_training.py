"""Training by gradient steps: soft prompts, LoRA and full fine-tuning (`prm.training.reward_trainer`)."""

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prm.checkpoint import checkpoint as checkpoints
from prm.config import TrainConfig
from prm.data.comparison import Comparison
from prm.data.encoding import Batch, pad
from prm.io.run_files import read_run
from prm.models.backbones import processes
from prm.models.reward_model import RewardModel
from prm.training.reward_trainer import EncodedPair, add_lora, build_reward_trainer
from prm.training.setup import (
    announce_base_head,
    encode_pairs,
    load_earlier_checkpoint,
    new_checkpoint,
    set_generic_row,
)
from prm.training.trainer_base import run_trainer, special_tokens_kept
from prm.users.index import UserIndex

logger = logging.getLogger(__name__)

_CALIBRATION_PAIRS = 128


def train_steps(
    config: TrainConfig,
    comparisons: Sequence[Comparison],
    validation: Sequence[Comparison],
    work: Path,
    run: dict[str, Any],
) -> dict[str, Any]:
    """Train a new model, or continue an earlier run, and save it. Returns metrics.

    Continuing on a frozen backbone trains the rows of the users in `comparisons` only; other rows and all shared
    weights stay the same to the bit.
    """
    if config.start_from:
        checkpoint = load_earlier_checkpoint(config, comparisons)
    else:
        checkpoint = new_checkpoint(config, UserIndex.from_comparisons(comparisons), day=run["day"])
        announce_base_head(checkpoint)
    model, users, encoder = checkpoint.model, checkpoint.users, checkpoint.encoder()
    train = encode_pairs(encoder, users, comparisons, config.users.text_dropout, config.seed)
    check = encode_pairs(encoder, users, validation)
    rows_only = bool(config.start_from) and config.train == "frozen"
    if not config.start_from:
        keeps_base_head = model.score is not None and checkpoint.settings.base_head
        if not keeps_base_head:
            calibrate(model, train, config.seed)
        if config.train == "lora":
            add_lora(model, config.lora)
    # the generic term trains nothing if only users' rows are trained
    train_config = replace(config, alpha=1.0) if rows_only else config
    with special_tokens_kept(model.config, checkpoint.tokenizer) as padded:
        metrics = run_trainer(build_reward_trainer(model, padded, train, check, train_config, work))
    if not rows_only:
        set_generic_row(model.user_model, config.alpha)
    if processes().is_main_process:
        model.eval()
        parameters: dict[str, int] | None = model.trained_parameters()
        if rows_only:  # the earlier run trained the shared parameters; old runs do not store their number
            earlier = read_run(Path(config.start_from)).get("parameters")
            parameters = earlier and {**model.trained_parameters(), "shared": earlier["shared"]}
        checkpoints.save(checkpoint, work, run | {"parameters": parameters})
    return metrics


@torch.no_grad()
def calibrate(model: RewardModel, pairs: Sequence[EncodedPair], seed: int) -> None:
    """Set the head's mean and scale from the untrained model's hidden states on a sample of training pairs."""
    sample = random.Random(seed).sample(list(pairs), min(_CALIBRATION_PAIRS, len(pairs)))
    pooled = []
    for pair in sample:
        batch = Batch(*(field.to(model.standard_mean.device) for field in pad([pair.chosen, pair.rejected])))
        if model.is_linear:
            _, batch = model.take_off_users(batch)
        pooled.append(model.pooled(batch))
    model.standardise_by(torch.cat(pooled))
