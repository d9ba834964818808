"""Step-by-step training: soft prompts, LoRA and full fine-tuning (`prm.training.reward_trainer`)."""

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
from prm.training.reward_trainer import EncodedPair, add_lora, build_trainer
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
    """Train a new model, or the earlier run's on, and save it. Returns metrics.

    An earlier run on a frozen backbone teaches its new people only: no other row, nothing shared, moves by a bit.
    """
    if config.start_from:
        checkpoint = load_earlier_checkpoint(config, comparisons)
    else:
        checkpoint = new_checkpoint(config, UserIndex.from_comparisons(comparisons), day=run["day"])
        announce_base_head(checkpoint)
    model, users, encoder = checkpoint.model, checkpoint.users, checkpoint.encoder()
    learn = encode_pairs(encoder, users, comparisons, config.users.text_dropout, config.seed)
    check = encode_pairs(encoder, users, validation)
    rows_only = bool(config.start_from) and config.train == "frozen"
    if not config.start_from:
        reads_as_trained = model.score is not None and checkpoint.settings["base_head"]
        if not reads_as_trained:
            calibrate(model, learn, config.seed)
        if config.train == "lora":
            add_lora(model, config.lora)
    # the generic term has nothing to teach where only people's own rows learn
    trained = replace(config, alpha=1.0) if rows_only else config
    with special_tokens_kept(model.config, checkpoint.tokenizer) as padded:
        metrics = run_trainer(build_trainer(model, padded, learn, check, trained, work))
    if not rows_only:
        set_generic_row(model.user_model, config.alpha)
    if processes().is_main_process:
        model.eval()
        parameters: dict[str, int] | None = model.trained_parameters()
        if rows_only:  # what people share was trained by the earlier run, which may be too old to tell
            earlier = read_run(Path(config.start_from)).get("parameters")
            parameters = earlier and {**model.trained_parameters(), "shared": earlier["shared"]}
        checkpoints.save(checkpoint, work, run | {"parameters": parameters})
    return metrics


@torch.no_grad()
def calibrate(model: RewardModel, pairs: Sequence[EncodedPair], seed: int) -> None:
    """Fix the head's mean and scale from hidden states of the untrained model on some training pairs."""
    chosen = random.Random(seed).sample(list(pairs), min(_CALIBRATION_PAIRS, len(pairs)))
    pooled = []
    for pair in chosen:
        batch = Batch(*(field.to(model.standard_mean.device) for field in pad([pair.chosen, pair.rejected])))
        if model.is_linear:
            _, batch = model.take_off_users(batch)
        pooled.append(model.pooled(batch))
    model.standardise_by(torch.cat(pooled))
