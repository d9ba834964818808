"""P-DPO: train a policy directly on comparisons, for each user and the generic user (section 4.4)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from transformers import EvalPrediction
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from policy.config import DpoConfig
from policy.setup import new_policy, readable_by_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.data.comparison import Comparison
from prm.features.reference_logps import completion, kept_reference_logps
from prm.models.backbones import processes
from prm.models.policy_model import Policy
from prm.models.user_token_embedding import to_generic
from prm.training.losses import two_terms
from prm.training.parts import Parts, split_parts
from prm.training.reward_trainer import EncodedPair, collate, parameter_groups, terms_of, to_dataset, validation_metrics
from prm.training.run import make_run
from prm.training.setup import encode_pairs_with_plain, set_generic_row
from prm.training.trainer_base import (
    StepTrainer,
    build_arguments,
    build_callbacks,
    build_optimizers,
    run_trainer,
    total_steps,
)
from prm.users.index import UserIndex

_REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names
_INPUTS = ("input_ids", "attention_mask", "response_mask")
_PLAIN = "plain_"  # prefix of the reference's inputs


@dataclass(frozen=True)
class PolicyPair:
    """A comparison encoded for the policy and, without user (`plain`), for the reference; with log pi_ref, nats.

    In bfloat16 `references` is `None`: log-probabilities then change by whole nats with the composition of a batch, so
    the reference is evaluated during training, on the same batches as the policy.
    """

    pair: EncodedPair
    plain: EncodedPair
    references: tuple[float, float] | None


def train_dpo(config: DpoConfig) -> Path:
    """Train a policy by P-DPO; return the run folder, which appears when training has finished.

    The same call resumes a killed run. Raises `PrmError` for invalid settings or data, and if the folder exists and
    `overwrite` is false.
    """
    return make_run(
        config,
        checkpoints.POLICY,
        partial(split_parts, config, partial(readable_by_policy, config)),
        partial(_fit, config),
    )


def _fit(config: DpoConfig, parts: Parts, work: Path, run: dict[str, Any]) -> dict[str, Any]:
    index = UserIndex.from_comparisons(parts.train)
    checkpoint = new_policy(config, config.users, index, {"method": "dpo", **asdict(config.objective)}, run["day"])
    policy = checkpoint.model
    train = policy_pairs(checkpoint, parts.train, config.users.text_dropout, config.seed)
    validation = policy_pairs(checkpoint, parts.validation)
    metrics = run_trainer(build_dpo_trainer(checkpoint, train, validation, config, work))
    set_generic_row(policy.user_model, config.alpha)
    if processes().is_main_process:
        checkpoints.save(checkpoint, work, run | {"parameters": policy.trained_parameters()})
    return metrics


def policy_pairs(
    checkpoint: Checkpoint[Policy], comparisons: Sequence[Comparison], text_dropout: float = 0.0, seed: int = 0
) -> list[PolicyPair]:
    """Encode comparisons with their users and without (plain), and compute the reference's log-probabilities.

    The policy must be untrained: it is the reference. Raises `DataError` naming the row whose response does not fit.
    """
    pairs: list[PolicyPair] = []
    for pair, (chosen, rejected) in encode_pairs_with_plain(
        checkpoint.encoder(), checkpoint.users, comparisons, text_dropout, seed
    ):
        personal = replace(pair, chosen=completion(pair.chosen), rejected=completion(pair.rejected))
        plain = replace(pair, chosen=completion(chosen), rejected=completion(rejected))
        pairs.append(PolicyPair(personal, plain, None))
    if _computes_reference_in_training(checkpoint.model):
        return pairs
    with processes().main_process_first():  # the other processes load it from disk
        sides = [side for p in pairs for side in (p.plain.chosen, p.plain.rejected)]
        logps = kept_reference_logps(checkpoint.model, sides).tolist()
    return [replace(p, references=both) for p, both in zip(pairs, zip(logps[::2], logps[1::2], strict=True))]


def _computes_reference_in_training(policy: Policy) -> bool:
    weights = [p for name, p in policy.backbone.named_parameters() if "lora_" not in name]
    return weights[0].dtype == torch.bfloat16 and not any(p.requires_grad for p in weights)


class PersonalizedDPOTrainer(StepTrainer, DPOTrainer):
    """TRL's DPOTrainer with the two-term loss of section 4.4, pair by pair.

    One forward pass computes every pair for its user and for the generic user. TRL's loss is then called on each pair
    alone, with a stub model that returns the computed outputs, so that weights and soft labels are exact for any of
    TRL's losses and any division into micro-batches.
    """

    def __init__(self, model: Policy, alpha: float, **kwargs: Any):
        self.alpha = alpha
        super().__init__(model=cast(Any, model), **kwargs)
        self.aux_loss_enabled = False  # TRL's router loss of mixtures of experts: not part of the objective

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted sum of the pairs' losses, divided by the total weight of the optimiser step."""
        policy = cast(Policy, self.accelerator.unwrap_model(model))
        inputs = inputs | self._references(policy, inputs)
        mode = terms_of(policy.user_model, self.alpha, model.training)
        terms = ("user", "generic") if mode == "both" else (mode,)
        outputs = self._forward_terms(model, policy, inputs, terms)
        losses: dict[str, Tensor] = {}
        for term, output in zip(terms, outputs, strict=True):
            losses[term] = self._losses(output, inputs, logged=term == terms[0])
        loss = two_terms(losses.get("user"), losses.get("generic"), self.alpha)
        share = self.weighted_mean_over_step(loss, inputs["weight"], num_items_in_batch)
        if not return_outputs:
            return share
        margins = [self._margins(output, inputs) for output in outputs]
        if self.alpha == 0.0:  # stop by the generic user's margins, the only ones trained
            margins = margins[-1:]
        return share, (*margins, inputs["p_chosen"], inputs["weight"], loss)

    def _forward_terms(
        self, model: nn.Module, policy: Policy, inputs: dict[str, Tensor], terms: Sequence[str]
    ) -> list[SimpleNamespace]:
        """Outputs of TRL's fused head for the batch, [2n, l - 1] each, for every term.

        The prompt of both responses is read once if the backbone can, with the same outputs.
        """
        ids = {"user": inputs["input_ids"]}
        ids["generic"] = to_generic(inputs["input_ids"], policy.vocab_size, policy.user_tokens)
        input_ids = torch.cat([ids[term] for term in terms])
        attention, response = (inputs[k].repeat(len(terms), 1) for k in ("attention_mask", "response_mask"))
        labels = input_ids.masked_fill(~response, -100)
        options = {"together": True} if policy.packs else {"use_cache": False, "fused_lm_head": True}
        outputs = model(input_ids=input_ids, attention_mask=attention.long(), labels=labels, **options)
        parts = {k: v.chunk(len(terms)) for k, v in outputs.items() if isinstance(v, Tensor) and v.dim() == 2}
        return [SimpleNamespace(**{k: v[i] for k, v in parts.items()}) for i in range(len(terms))]

    @torch.no_grad()
    def _references(self, policy: Policy, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """log pi_ref [n] of both sides, unless precomputed: from the plain texts, in the same batches as the policy.

        If both read the same texts, the result equals the untrained policy's to the bit.
        """
        if _REFERENCES[0] in inputs:
            return {}
        plain = {name: inputs[_PLAIN + name] for name in _INPUTS}
        with policy.reference() as start:
            (outputs,) = self._forward_terms(start, start, plain, ("user",))
        return dict(zip(_REFERENCES, outputs.log_probs.sum(-1).chunk(2), strict=True))

    def _losses(self, outputs: SimpleNamespace, inputs: dict[str, Tensor], logged: bool) -> Tensor:
        """TRL's loss of each pair, [n]; with a soft label p it is p loss(c, r) + (1 - p) loss(r, c)."""
        n = len(inputs["weight"])
        losses = []
        for i in range(n):
            loss = self._trl_loss(outputs, inputs, (i, n + i), logged)
            if (p := float(inputs["p_chosen"][i])) < 1.0:
                loss = p * loss + (1.0 - p) * self._trl_loss(outputs, inputs, (n + i, i), logged=False)
            losses.append(loss)
        return torch.stack(losses)

    def _trl_loss(
        self, outputs: SimpleNamespace, inputs: dict[str, Tensor], rows: tuple[int, int], logged: bool
    ) -> Tensor:
        """TRL's loss of the pair whose (chosen, rejected) are `rows` of the batch; a scalar."""
        index = list(rows)
        pair = {"input_ids": inputs["input_ids"][index], "attention_mask": inputs["attention_mask"][index]}
        pair["completion_mask"] = inputs["response_mask"][index].long()
        references = torch.cat([inputs[name] for name in _REFERENCES])[index]
        pair |= dict(zip(_REFERENCES, references.split(1), strict=True))
        pair_outputs = SimpleNamespace(**{name: field[index] for name, field in vars(outputs).items()})
        with self._without_gather(logged):
            return self._compute_loss(lambda **_: pair_outputs, pair, return_outputs=False)

    def _margins(self, outputs: SimpleNamespace, inputs: dict[str, Tensor]) -> Tensor:
        """beta (log pi / pi_ref of chosen - of rejected), [n]: differences of implicit rewards, in logits."""
        ratios = outputs.log_probs.sum(-1) - torch.cat([inputs[name] for name in _REFERENCES])
        chosen, rejected = ratios.chunk(2)
        return self.beta * (chosen - rejected)

    @contextmanager
    def _without_gather(self, logged: bool) -> Iterator[None]:
        """Keep TRL's loss from gathering: processes call it different numbers of times, depending on their labels.

        TRL's metrics are logged only if `logged`: of the first term with the labels as given, and of the main
        process's pairs.
        """
        accelerator, metrics = self.accelerator, self._metrics
        self.accelerator = cast(
            Any, SimpleNamespace(device=accelerator.device, gather=_as_is, gather_for_metrics=_as_is)
        )
        if not logged:
            self._metrics = {mode: defaultdict(list) for mode in metrics}
        try:
            yield
        finally:
            self.accelerator, self._metrics = accelerator, metrics

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset  # done by `policy_pairs` or `_references`, on the plain texts


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def dpo_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`objective` (weighted mean of the loss), and the implicit reward's metrics as for any reward model.

    Raises `PrmError`, which ends the run, if a reward is not finite.
    """
    *columns, weight, loss = cast(tuple[Any, ...], prediction.predictions)
    metrics = validation_metrics(EvalPrediction(cast(Any, (*columns, weight)), cast(Any, None)))
    return metrics | {"objective": float(np.average(np.asarray(loss, np.float64), weights=weight))}


def policy_collate(pairs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """`reward_trainer.collate`, plus the reference's log-probabilities [n] of both sides, or the plain texts."""
    batch = collate(pairs)
    if _REFERENCES[0] in pairs[0]:
        return batch | {name: torch.tensor([pair[name] for pair in pairs]) for name in _REFERENCES}
    plain = collate(
        [pair | {n.removeprefix(_PLAIN): x for n, x in pair.items() if n.startswith(_PLAIN)} for pair in pairs]
    )
    return batch | {_PLAIN + name: plain[name] for name in _INPUTS}


def policy_dataset(pairs: Sequence[PolicyPair]) -> Dataset:
    """Convert the pairs to a data set."""
    dataset = to_dataset(p.pair for p in pairs)
    references = [p.references for p in pairs if p.references is not None]
    if not references:
        plain = to_dataset(p.plain for p in pairs)
        return concatenate_datasets([dataset, plain.rename_columns({n: _PLAIN + n for n in plain.features})], axis=1)
    for name, column in zip(_REFERENCES, zip(*references, strict=True), strict=True):
        dataset = dataset.add_column(name, list(column))
    return dataset


def build_dpo_trainer(
    checkpoint: Checkpoint[Policy],
    train: Sequence[PolicyPair],
    validation: Sequence[PolicyPair],
    config: DpoConfig,
    folder: Path,
) -> PersonalizedDPOTrainer:
    """Build a trainer with early stopping on the validation part, TensorBoard logs, and checkpoints in `folder`."""
    policy, optim, objective = checkpoint.model, config.optim, config.objective
    total = total_steps(len(train), optim)
    arguments = TrlConfig(
        **build_arguments(optim, total, folder, config.seed, stop_by="objective"),
        beta=objective.beta,
        loss_type=[objective.loss_type, *(["sft"] if objective.sft_weight else [])],
        loss_weights=[1.0, *([objective.sft_weight] if objective.sft_weight else [])],
        label_smoothing=objective.label_smoothing,
        max_length=None,
        disable_dropout=False,  # TRL would disable the adapters' dropout too
        activation_checkpointing=False,  # enabled with the model
        precompute_ref_log_probs=True,
    )
    # use several GPUs through `accelerate launch` only: a single process must not use DataParallel
    arguments._n_gpu = min(1, arguments.n_gpu)
    groups = parameter_groups(policy, optim, config.train == "full")
    return PersonalizedDPOTrainer(
        policy,
        alpha=config.alpha,
        args=arguments,
        train_dataset=policy_dataset(train),
        eval_dataset=policy_dataset(validation),
        data_collator=policy_collate,
        processing_class=checkpoint.tokenizer,
        compute_metrics=dpo_metrics,
        callbacks=build_callbacks(optim, folder),
        optimizers=build_optimizers(groups, optim, total),
    )
