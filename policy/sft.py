"""Supervised fine-tuning: the step before P-DPO, and the policy that it is compared with."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import EvalPrediction, TrainingArguments

from policy.config import SftConfig
from policy.setup import new_policy, readable_by_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.config import UserConfig
from prm.data.comparison import Comparison, Prompt, parse_prompt, require_text
from prm.data.encoding import Batch, Encoded, TextEncoder, pad
from prm.errors import DataError, PrmError
from prm.features.reference_logps import completion
from prm.io.tables import read_rows
from prm.models.backbones import processes
from prm.models.policy_model import Policy
from prm.training.reward_trainer import parameter_groups
from prm.training.run import Parts, make_run, split_parts
from prm.training.trainer_base import (
    StepTrainer,
    build_arguments,
    build_callbacks,
    build_optimizers,
    run_trainer,
    total_steps,
)
from prm.training.unreadable_rows import encoder_of_config
from prm.users.index import UserIndex

Answer = tuple[Prompt, str]

_NOBODY = UserConfig("uniform", num_virtual_tokens=0)


def train_sft(config: SftConfig) -> Path:
    """Train a policy that knows nobody; returns the run folder, which appears when everything is in it.

    Its adapters are merged into the weights, so that the run is a language model to start from: name it as
    `backbone.name`. Resumes and raises as `policy.dpo.train_dpo` does.
    """
    return make_run(config, checkpoints.POLICY, partial(_divide, config), partial(_fit, config))


def _divide(config: SftConfig) -> Parts:
    if not config.responses:
        return split_parts(config, partial(readable_by_policy, config, sides=("chosen",)))
    path = Path(config.responses)
    if not path.is_file():
        raise PrmError(f"config key 'answers': {path}: no such file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    _, skipped = _answers(config)
    return Parts([], [], [], {"path": config.responses, "fingerprint": digest, "skipped": len(skipped)}, skipped)


def _answers(config: SftConfig) -> tuple[list[Answer], list[dict[str, Any]]]:
    encoder = encoder_of_config(config.backbone, _NOBODY)
    return read_answers(config.responses, encoder, config.data.on_bad_row == "skip")


def _fit(config: SftConfig, parts: Parts, work: Path, run: dict[str, Any]) -> dict[str, Any]:
    if config.responses:
        learn, check = split_answers(_answers(config)[0], config.data.validation_fraction, config.seed)
    else:
        learn, check = chosen_answers(parts.train), chosen_answers(parts.validation)
    checkpoint = new_policy(config, _NOBODY, UserIndex(), {"method": "sft"}, run["day"])
    policy, encoder = checkpoint.model, checkpoint.encoder()
    trainer = build_sft_trainer(
        checkpoint, encode_answers(encoder, learn), encode_answers(encoder, check), config, work
    )
    metrics = run_trainer(trainer)
    if processes().is_main_process:
        parameters = policy.trained_parameters()
        policy.merge_adapter()
        checkpoint.tuned = True
        data = {**run["data"], "train_answers": len(learn), "validation_answers": len(check)}
        checkpoints.save(checkpoint, work, run | {"parameters": parameters, "data": data})
    return metrics


def chosen_answers(comparisons: Iterable[Comparison]) -> list[Answer]:
    """Each chosen answer once per prompt, whoever chose it; of a tie neither."""
    return list(dict.fromkeys((c.prompt, c.chosen) for c in comparisons if not c.is_tie))


def read_answers(
    path: str, encoder: TextEncoder | None = None, skip: bool = False
) -> tuple[list[Answer], list[dict[str, Any]]]:
    """(rows of `prompt` and `response`, each once; rows that make no sense or that the encoder cannot read).

    Raises `DataError` naming file, line and fault, unless these are to be skipped, and where nothing is left.
    """
    answers, skipped = list[Answer](), list[dict[str, Any]]()
    for number, row in read_rows(path):
        place = f"{path}, line {number}"
        try:
            require_text("response", row.get("response"))
            answer = parse_prompt(row.get("prompt")), str(row["response"])
            if encoder is not None:
                encoder.encode(*answer)
        except DataError as error:
            if not skip:
                raise DataError(f"{place}: {error}") from None
            skipped.append({"row_of": place, "fault": str(error), "row": row})
        else:
            answers.append(answer)
    if not answers:
        raise DataError(f"{skipped[0]['row_of']}: {skipped[0]['fault']}; none of the rows makes sense")
    return list(dict.fromkeys(answers)), skipped


def split_answers(answers: Sequence[Answer], fraction: float, seed: int) -> tuple[list[Answer], list[Answer]]:
    """(to learn from, to stop by): no prompt stands in both. Raises `DataError` for fewer than two prompts."""
    prompts = list(dict.fromkeys(prompt for prompt, _ in answers))
    if len(prompts) < 2:
        raise DataError(f"answers to {len(prompts)} prompts cannot be divided: some must be left to stop training by")
    random.Random(seed).shuffle(prompts)
    held = set(prompts[: min(len(prompts) - 1, max(1, round(fraction * len(prompts))))])
    return [a for a in answers if a[0] not in held], [a for a in answers if a[0] in held]


def encode_answers(encoder: TextEncoder, answers: Iterable[Answer]) -> list[Encoded]:
    """Sequences whose response runs to its end token. Raises `DataError` for an answer that does not fit."""
    return [completion(encoder.encode(prompt, response)) for prompt, response in answers]


class AnswerTrainer(StepTrainer):
    """Next-token loss on answers: the mean over all tokens of an optimiser step, nats."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Summed over the batch's tokens, over the tokens of the whole step; beside it what `sft_metrics` reads."""
        policy = cast(Policy, self.accelerator.unwrap_model(model))
        batch = Batch(inputs["input_ids"], inputs["attention_mask"], inputs["response_mask"])
        losses = -policy.token_logps(batch, model).sum(-1) / batch.response_mask.sum(-1)
        loss = self.weighted_mean_over_step(losses, inputs["weight"], num_items_in_batch)
        return (loss, (losses, inputs["weight"])) if return_outputs else loss


def sft_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`nll`: mean over the tokens of the validation part. Raises `PrmError` where it is no number."""
    losses, weight = (np.asarray(c, np.float64) for c in cast(tuple[Any, ...], prediction.predictions))
    found = float(np.average(losses, weights=weight))
    if not np.isfinite(found):
        raise PrmError("the loss is no finite number: lower the learning rate, or use backbone.dtype float32")
    return {"nll": found}


def build_sft_trainer(
    checkpoint: Checkpoint[Policy],
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    config: SftConfig,
    folder: Path,
) -> AnswerTrainer:
    """A trainer that stops early on the validation part, logs to TensorBoard, and can be resumed from `folder`."""
    optim, policy = config.optim, checkpoint.model
    total = total_steps(len(train), optim)
    arguments = TrainingArguments(**build_arguments(optim, total, folder, config.seed, stop_by="nll"))
    # several GPUs are for `accelerate launch`; one process alone must not spread the model over them
    arguments._n_gpu = min(1, arguments.n_gpu)
    return AnswerTrainer(
        model=policy,
        args=arguments,
        train_dataset=Dataset.from_list([_row(sequence) for sequence in train]),
        eval_dataset=Dataset.from_list([_row(sequence) for sequence in validation]),
        data_collator=_collate,
        processing_class=checkpoint.tokenizer,
        compute_metrics=sft_metrics,
        callbacks=build_callbacks(optim, folder),
        optimizers=build_optimizers(parameter_groups(policy, optim, config.train == "full"), optim, total),
    )


def _row(answer: Encoded) -> dict[str, Any]:
    start, end = answer.response
    return {"ids": answer.ids, "response": [start, end], "weight": float(end - start)}


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """[n, l] ids and masks; the weight [n] of an answer is how many tokens it has."""
    batch = pad([Encoded(row["ids"], tuple(row["response"])) for row in rows])._asdict()
    return batch | {"weight": torch.tensor([row["weight"] for row in rows])}
