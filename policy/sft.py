"""Supervised fine-tuning: the initial policy of P-DPO, and its baseline."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback, TrainingArguments

from policy.config import SftConfig
from policy.responses import Response, read_responses
from policy.setup import new_policy, readable_by_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import TrainedBy
from prm.config import UserConfig
from prm.data.comparison import Comparison
from prm.data.encoding import Batch, Encoded, TextEncoder, pad
from prm.data.sources.collector import SkippedRow
from prm.errors import DataError, PrmError
from prm.features.reference_logps import completion
from prm.io.run_files import LogRecord, Metrics, RunRecord
from prm.models.backbones import processes
from prm.models.policy_model import Policy
from prm.training.encoded_pairs import DatasetRow
from prm.training.prepare_log import DataSplit, Log, split_data
from prm.training.run import make_run
from prm.training.trainers.step_trainer import StepTrainer, build_trainer, run_trainer
from prm.training.trainers.trainer_setting import refuse_callbacks
from prm.training.unreadable_rows import encoder_of_config
from prm.users.index import UserIndex

_NO_USERS = UserConfig("uniform", num_virtual_tokens=0)


def train_sft(config: SftConfig, log: Log | None = None, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train a policy without users; return the run folder, which appears when training has finished.

    Its adapters are merged into the weights, so that other runs can start from it as `backbone.name`. Resumes and
    raises as `policy.dpo.train_dpo` does.

    Args:
        log: as in `train_dpo`.
        callbacks: as in `train_dpo`.
    """
    refuse_callbacks(callbacks)
    return make_run(config, checkpoints.POLICY, partial(_divide, config, log), partial(_fit, config, callbacks))


def _divide(config: SftConfig, log: Log | None = None) -> DataSplit:
    if not config.responses:
        return split_data(config, partial(readable_by_policy, config, sides=("chosen",)), log)
    config.check_responses()
    path = Path(config.responses)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    _, skipped = _read_responses(config)
    return DataSplit([], [], [], {"path": config.responses, "fingerprint": digest, "skipped": len(skipped)}, skipped)


def _read_responses(config: SftConfig) -> tuple[list[Response], list[SkippedRow]]:
    encoder = encoder_of_config(config.backbone, _NO_USERS)
    return read_responses(config.responses, encoder, config.data.on_bad_row == "skip")


def _fit(
    config: SftConfig, callbacks: Sequence[TrainerCallback], parts: DataSplit, work: Path, run: RunRecord
) -> Metrics:
    if config.responses:
        train, validation = split_responses(
            _read_responses(config)[0], config.data.validation_fraction, config.split_seed
        )
    else:
        train, validation = chosen_responses(parts.train), chosen_responses(parts.validation)
    checkpoint = new_policy(config, _NO_USERS, UserIndex(), TrainedBy("sft"), run["day"])
    policy, encoder = checkpoint.model, checkpoint.encoder()
    trainer = build_sft_trainer(
        checkpoint, encode_responses(encoder, train), encode_responses(encoder, validation), config, work, callbacks
    )
    metrics = run_trainer(trainer)
    if processes().is_main_process:
        parameters = policy.trained_parameters()
        policy.merge_adapter()
        checkpoint.tuned = True
        data: LogRecord = {**run["data"], "train_answers": len(train), "validation_answers": len(validation)}
        checkpoints.save(checkpoint, work, run | {"parameters": parameters, "data": data})
    return metrics


def chosen_responses(comparisons: Iterable[Comparison]) -> list[Response]:
    """The distinct (prompt, chosen response) pairs of all users; ties are left out."""
    return list(dict.fromkeys((c.prompt, c.chosen) for c in comparisons if not c.is_tie))


def split_responses(responses: Sequence[Response], fraction: float, seed: int) -> tuple[list[Response], list[Response]]:
    """Split into (training, validation) without a common prompt. Raises `DataError` for fewer than two prompts."""
    prompts = list(dict.fromkeys(prompt for prompt, _ in responses))
    if len(prompts) < 2:
        raise DataError(f"responses to {len(prompts)} prompts cannot be split: add prompts, for a validation part")
    random.Random(seed).shuffle(prompts)
    held_out = set(prompts[: min(len(prompts) - 1, max(1, round(fraction * len(prompts))))])
    return [a for a in responses if a[0] not in held_out], [a for a in responses if a[0] in held_out]


def encode_responses(encoder: TextEncoder, responses: Iterable[Response]) -> list[Encoded]:
    """Encode responses up to their end tokens. Raises `DataError` for a response that does not fit."""
    return [completion(encoder.encode(prompt, response)) for prompt, response in responses]


class AnswerTrainer(StepTrainer):
    """Next-token loss on responses: the mean over all tokens of an optimiser step, in nats."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Sum over the batch's tokens, divided by the step's number of tokens; with outputs for `sft_metrics`."""
        policy = cast(Policy, self.accelerator.unwrap_model(model))
        batch = Batch(inputs["input_ids"], inputs["attention_mask"], inputs["response_mask"])
        losses = -policy.token_logps(batch, model).sum(-1) / batch.response_mask.sum(-1)
        loss = self.weighted_mean_over_step(losses, inputs["weight"], num_items_in_batch)
        return (loss, (losses, inputs["weight"])) if return_outputs else loss


def sft_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`nll`: mean loss over the tokens of the validation part, nats. Raises `PrmError` if it is not finite."""
    losses, weight = (np.asarray(c, np.float64) for c in prediction.predictions)
    nll = float(np.average(losses, weights=weight))
    if not np.isfinite(nll):
        raise PrmError("the loss is not finite: lower the learning rate, or use backbone.dtype float32")
    return {"nll": nll}


def build_sft_trainer(
    checkpoint: Checkpoint[Policy],
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    config: SftConfig,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> AnswerTrainer:
    """Build the trainer; it stops by the loss. See `prm.training.trainers.step_trainer.build_trainer`."""
    return build_trainer(
        partial(AnswerTrainer, data_collator=_collate, compute_metrics=sft_metrics),
        TrainingArguments,
        checkpoint.model,
        checkpoint.tokenizer,
        Dataset.from_list([_row(sequence) for sequence in train]),
        Dataset.from_list([_row(sequence) for sequence in validation]),
        config,
        folder,
        stop_by="nll",
        callbacks=callbacks,
    )


def _row(response: Encoded) -> DatasetRow:
    start, end = response.response
    return {"ids": response.ids, "response": [start, end], "weight": float(end - start)}


def _collate(rows: Sequence[DatasetRow]) -> dict[str, Tensor]:
    """Pad to [n, l] ids and masks; a response's weight, [n], is its number of tokens."""
    batch = pad([Encoded(row["ids"], tuple(row["response"])) for row in rows])._asdict()
    return batch | {"weight": torch.tensor([row["weight"] for row in rows])}
