"""P-DPO: train a policy directly on comparisons, for each user and the generic user (section 4.4)."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import DataCollator, PreTrainedTokenizerBase, TrainerCallback
from trl import DPOTrainer

from policy.arguments import PersonalizedDPOConfig
from policy.config import DpoConfig, Objective
from policy.dpo_losses import ResponseLogps, dpo_loss, log_ratio_margin, soft_label_loss
from policy.dpo_metrics import METRICS, dpo_metrics, pair_metrics
from policy.dpo_pairs import INPUTS, PLAIN, REFERENCES, PolicyPair, policy_collate, policy_dataset, policy_pairs
from policy.personalized_policy import PersonalizedPolicy, start_policy
from policy.setup import new_policy, readable_by_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import TrainedBy
from prm.checkpoint.hub_model import HubModel
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.io.run_files import Metrics, RunRecord
from prm.models.backbones import processes
from prm.models.policy_model import Policy
from prm.models.user_token_embedding import to_generic
from prm.training.losses import two_terms
from prm.training.prepare_log import DataSplit, Log, refuse_ties, split_data
from prm.training.run import make_run
from prm.training.setup import set_generic_row
from prm.training.trainers.arguments import arguments_or_default
from prm.training.trainers.python_trainer import ComputeMetrics, PythonTrainer, folder_for, with_callers
from prm.training.trainers.reward_trainer import terms_of
from prm.training.trainers.step_trainer import build_trainer, run_trainer
from prm.training.trainers.train_datasets import TrainerData
from prm.training.trainers.trainer_setting import refuse_callbacks
from prm.users.index import UserIndex


def train_dpo(config: DpoConfig, log: Log | None = None, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train a policy by P-DPO; return the run folder, which appears when training has finished.

    The same call resumes a killed run. Raises `PrmError` for invalid settings or data, and if the folder exists and
    `overwrite` is false.

    Args:
        log: rows in memory, or feedback that was read already, instead of the file `data.path`.
        callbacks: of transformers.
    """
    refuse_callbacks(callbacks)
    return make_run(
        config,
        checkpoints.POLICY,
        partial(split_data, config, partial(readable_by_policy, config), log),
        partial(_fit, config, callbacks),
        shards=True,
    )


def _fit(
    config: DpoConfig, callbacks: Sequence[TrainerCallback], parts: DataSplit, work: Path, run: RunRecord
) -> Metrics:
    refuse_ties(parts.train, config.data)
    index = UserIndex.from_comparisons(parts.train)
    index.record(parts.validation)
    checkpoint = new_policy(config, config.users, index, TrainedBy("dpo", asdict(config.objective)), run["day"])
    policy = checkpoint.model
    train = policy_pairs(checkpoint, parts.train, config.users.text_dropout, config.seed)
    validation = policy_pairs(checkpoint, parts.validation)
    metrics = run_trainer(build_dpo_trainer(checkpoint, train, validation, config, work, callbacks))
    if processes().is_main_process:
        set_generic_row(policy.user_model, config.alpha)
        checkpoints.save(checkpoint, work, run | {"parameters": policy.trained_parameters()})
    return metrics


class PersonalizedDPOTrainer(PythonTrainer, DPOTrainer):
    """TRL's `DPOTrainer` with users: the two-term loss of section 4.4, weighted pairs and soft labels.

    One forward pass computes every pair for its user and for the generic user. The loss is one value per pair, so that
    weights and soft labels are exact for any division into micro-batches. TRL's metrics are weighted means, too: of
    the first term, with the labels as given, over the pairs of all processes.

    Args:
        model: an untrained `PersonalizedPolicy`, or the name of a language model: a hub id, a folder (also of a run of
            `policy sft`), or `smollm2-135m`.
        args: `PersonalizedDPOConfig`; its defaults if not given.
        train_dataset: a `datasets.Dataset` in a form that TRL's trainer takes, with a column `user_id`, and optionally
            `user_text`, `p_chosen` and `weight`; or a list of dicts or of comparisons, a pandas frame, or a path.
        eval_dataset: the same, or a dict of several by name.
        processing_class: the language model's own tokenizer; it is loaded if not given.
        compute_metrics: further metrics beside those of `policy.dpo_metrics`; a name of ours replaces ours.
        callbacks: of transformers.
        optimizers: by default `RowAdamW` with a learning rate for each group of parameters, and our schedule.
        peft_config: a `LoraConfig` for the adapters, instead of `args.lora`.

    Raises `PrmError` for arguments that contradict each other or the model, `DataError` for a bad row, and `TypeError`
    for `args` or a model of another class.
    """

    personalized: PersonalizedPolicy
    objective: Objective
    LOGGED = METRICS

    def __init__(
        self,
        model: PersonalizedPolicy | str | Path,
        args: PersonalizedDPOConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: object = None,
        eval_dataset: object = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: ComputeMetrics | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
        peft_config: PeftConfig | None = None,
    ):
        args = arguments_or_default(PersonalizedDPOConfig, args, folder_for(model, "dpo"))
        self._given, self.alpha, self.objective = args, args.alpha, args.objective()
        super().__init__(
            model,
            args,
            data_collator or policy_collate,
            train_dataset,
            eval_dataset,
            processing_class,
            with_callers(dpo_metrics, compute_metrics),
            callbacks,
            optimizers,
            peft_config,
        )
        self.is_fsdp_enabled = self._shards

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does; FSDP is hidden until the trainer is built, or TRL would load a reference of its own."""
        super().create_accelerator_and_postprocess()
        self._shards, self.is_fsdp_enabled = self.is_fsdp_enabled, False

    def prepared(
        self,
        model: HubModel[Any] | str | Path,
        train: TrainerData,
        peft_config: PeftConfig | None,
    ) -> tuple[DpoConfig, Dataset]:
        """(the arguments as settings of a run, the encoded training data); makes the policy."""
        objective = TrainedBy("dpo", asdict(self.objective))
        self.personalized, config = start_policy(
            model, self._given, self._given.settings, train.comparisons, objective, peft_config
        )
        config = replace(config, data=replace(config.data, path=train.path))
        return config, policy_dataset(self._pairs(train.comparisons, config.users.text_dropout, config.seed))

    def _pairs(self, comparisons: Sequence[Comparison], dropout: float = 0.0, seed: int = 0) -> list[PolicyPair]:
        return policy_pairs(self.personalized.checkpoint, comparisons, dropout, seed)

    def encode(self, comparisons: Sequence[Comparison]) -> Dataset:
        """Comparisons for validation, encoded for the policy and its reference.

        Raises `DataError` for a response that does not fit, and `PrmError` if the weights that were the reference have
        been trained.
        """
        if self.personalized.checkpoint.tuned and hasattr(self, "state") and self.state.global_step > 0:
            raise PrmError("the weights that are the reference have been trained: give this data as 'eval_dataset'")
        return policy_dataset(self._pairs(comparisons))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """Weighted sum of the pairs' losses, divided by the total weight of the optimiser step."""
        policy = cast(Policy, self.accelerator.unwrap_model(model))
        inputs = inputs | self._references(policy, inputs)
        mode = terms_of(policy.user_model, self.alpha, model.training)
        terms = ("user", "generic") if mode == "both" else (mode,)
        outputs = self._forward_terms(model, policy, inputs, terms)
        sides = [_sides(output, inputs) for output in outputs]
        pair_loss = partial(dpo_loss, **asdict(self.objective))
        losses = {
            term: soft_label_loss(pair_loss, *pair, inputs["p_chosen"]) for term, pair in zip(terms, sides, strict=True)
        }
        loss, weight = two_terms(losses.get("user"), losses.get("generic"), self.alpha), inputs["weight"]
        share = self.weighted_mean_over_step(loss, weight, num_items_in_batch)
        metrics = pair_metrics(outputs[0], *sides[0], self.objective.beta)
        if not return_outputs:
            self.count(metrics, weight)
            return share
        margins = [self.objective.beta * log_ratio_margin(*pair) for pair in sides]
        if self.alpha == 0.0:  # stop by the generic user's margins, the only ones trained
            margins = margins[-1:]
        return share, (*margins, inputs["p_chosen"], weight, loss, metrics)

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
        if REFERENCES[0] in inputs:
            return {}
        plain = {name: inputs[PLAIN + name] for name in INPUTS}
        with policy.reference() as start:
            (outputs,) = self._forward_terms(start, start, plain, ("user",))
        return dict(zip(REFERENCES, outputs.log_probs.sum(-1).chunk(2), strict=True))

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset  # done by `policy_pairs` or `_references`, on the plain texts


def _sides(outputs: SimpleNamespace, inputs: dict[str, Tensor]) -> tuple[ResponseLogps, ResponseLogps]:
    """(chosen, rejected) responses of the batch's pairs."""
    logps, num_tokens = outputs.log_probs.sum(-1).chunk(2), inputs["response_mask"].sum(-1).chunk(2)
    chosen, rejected = (ResponseLogps(logps[i], inputs[name], num_tokens[i]) for i, name in enumerate(REFERENCES))
    return chosen, rejected


def build_dpo_trainer(
    checkpoint: Checkpoint[Policy],
    train: Sequence[PolicyPair],
    validation: Sequence[PolicyPair],
    config: DpoConfig,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> PersonalizedDPOTrainer:
    """Build the trainer of P-DPO; it stops by the loss. See `prm.training.trainers.step_trainer.build_trainer`."""
    return build_trainer(
        PersonalizedDPOTrainer,
        partial(PersonalizedDPOConfig, max_length=None, alpha=config.alpha, **asdict(config.objective)),
        PersonalizedPolicy(checkpoint),
        checkpoint.tokenizer,
        policy_dataset(train),
        policy_dataset(validation),
        config,
        folder,
        stop_by="objective",
        callbacks=callbacks,
    )
