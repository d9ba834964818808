"""Training by gradient steps: soft prompts, LoRA and full fine-tuning (`prm.training.trainers.reward_trainer`)."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import TrainerCallback

from prm.checkpoint import checkpoint as checkpoints
from prm.config import TrainConfig
from prm.data.comparison import Comparison
from prm.io.run_files import Metrics, Parameters, RunRecord, read_run
from prm.models.backbones import processes
from prm.training.setup import encode_pairs, load_earlier_checkpoint, new_checkpoint, set_generic_row
from prm.training.trainers.reward_start import prepare
from prm.training.trainers.reward_trainer import build_reward_trainer
from prm.training.trainers.step_trainer import run_trainer
from prm.users.index import UserIndex

logger = logging.getLogger(__name__)


def train_steps(
    config: TrainConfig,
    comparisons: Sequence[Comparison],
    validation: Sequence[Comparison],
    work: Path,
    run: RunRecord,
    callbacks: Sequence[TrainerCallback] = (),
) -> Metrics:
    """Train a new model, or continue an earlier run, and save it. Returns metrics.

    Continuing on a frozen backbone trains the rows of the users in `comparisons` only; other rows and all shared
    weights stay the same to the bit.
    """
    if config.start_from:
        checkpoint = load_earlier_checkpoint(config, comparisons)
    else:
        checkpoint = new_checkpoint(config, UserIndex.from_comparisons(comparisons), day=run["day"])
    model, users, encoder = checkpoint.model, checkpoint.users, checkpoint.encoder()
    users.record(validation)
    train = encode_pairs(encoder, users, comparisons, config.users.text_dropout, config.seed)
    check = encode_pairs(encoder, users, validation)
    rows_only = bool(config.start_from) and config.train == "frozen"
    if not config.start_from:
        prepare(checkpoint, train, config)
    # the generic term trains nothing if only users' rows are trained
    train_config = replace(config, alpha=1.0) if rows_only else config
    metrics = run_trainer(build_reward_trainer(checkpoint, train, check, train_config, work, callbacks))
    if processes().is_main_process:
        if not rows_only:
            set_generic_row(model.user_model, config.alpha)
        model.eval()
        parameters: Parameters | None = model.trained_parameters()
        if rows_only:  # the earlier run trained the shared parameters; old runs do not store their number
            earlier = read_run(Path(config.start_from)).get("parameters")
            parameters = earlier and {**model.trained_parameters(), "shared": earlier["shared"]}
        checkpoints.save(checkpoint, work, run | {"parameters": parameters})
    return metrics
