"""P-DPO: train a policy directly on comparisons, for each user and the generic user (section 4.4)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from policy.config import DpoConfig, Objective
from policy.dpo_losses import ResponseLogps, dpo_loss, log_ratio_margin, soft_label_loss
from policy.dpo_metrics import METRICS, dpo_metrics, pair_metrics
from policy.setup import new_policy, readable_by_policy
from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import TrainedBy
from prm.data.comparison import Comparison
from prm.features.reference_logps import completion, kept_reference_logps
from prm.models.backbones import processes
from prm.models.policy_model import Policy
from prm.models.user_token_embedding import to_generic
from prm.training.data_split import DataSplit, Log, split_data
from prm.training.losses import two_terms
from prm.training.reward_trainer import EncodedPair, collate, terms_of, to_dataset
from prm.training.run import make_run
from prm.training.setup import encode_pairs_with_plain, set_generic_row
from prm.training.trainer_base import StepTrainer, build_trainer, run_trainer
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


def train_dpo(config: DpoConfig, log: Log | None = None) -> Path:
    """Train a policy by P-DPO; return the run folder, which appears when training has finished.

    The same call resumes a killed run. Raises `PrmError` for invalid settings or data, and if the folder exists and
    `overwrite` is false.

    Args:
        log: rows in memory, or feedback that was read already, instead of the file `data.path`.
    """
    return make_run(
        config,
        checkpoints.POLICY,
        partial(split_data, config, partial(readable_by_policy, config), log),
        partial(_fit, config),
    )


def _fit(config: DpoConfig, parts: DataSplit, work: Path, run: dict[str, Any]) -> dict[str, Any]:
    index = UserIndex.from_comparisons(parts.train)
    checkpoint = new_policy(config, config.users, index, TrainedBy("dpo", asdict(config.objective)), run["day"])
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
    """TRL's DPOTrainer with the two-term loss of section 4.4.

    One forward pass computes every pair for its user and for the generic user. The loss is one value per pair, so that
    weights and soft labels are exact for any division into micro-batches. TRL's metrics are weighted means, too: of
    the first term, with the labels as given, over the pairs of all processes.
    """

    def __init__(self, model: Policy, alpha: float, objective: Objective, **kwargs: Any):
        self.alpha = alpha
        self.objective: Objective = objective
        super().__init__(model=cast(Any, model), **kwargs)
        # since the last log: sums of weight times `METRICS`, and of the weights
        self._sums = torch.zeros(len(METRICS) + 1, device=self.accelerator.device)

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
        sides = [_sides(output, inputs) for output in outputs]
        pair_loss = partial(dpo_loss, **asdict(self.objective))
        losses = {
            term: soft_label_loss(pair_loss, *pair, inputs["p_chosen"]) for term, pair in zip(terms, sides, strict=True)
        }
        loss, weight = two_terms(losses.get("user"), losses.get("generic"), self.alpha), inputs["weight"]
        share = self.weighted_mean_over_step(loss, weight, num_items_in_batch)
        metrics = pair_metrics(outputs[0], *sides[0], self.objective.beta)
        if not return_outputs:
            self._sums += torch.cat([weight @ metrics, weight.sum()[None]])
            return share
        margins = [self.objective.beta * log_ratio_margin(*pair) for pair in sides]
        if self.alpha == 0.0:  # stop by the generic user's margins, the only ones trained
            margins = margins[-1:]
        return share, (*margins, inputs["p_chosen"], weight, loss, metrics)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Transformers' log; that of training steps with `METRICS` since the last one."""
        if "loss" in logs:  # all processes log at the same steps, so that they agree on when to add up
            sums = self.accelerator.reduce(self._sums, "sum")
            logs = logs | dict(zip(METRICS, (sums[:-1] / sums[-1]).tolist(), strict=True))
            self._sums.zero_()
        super().log(logs, start_time)

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

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset  # done by `policy_pairs` or `_references`, on the plain texts


def _sides(outputs: SimpleNamespace, inputs: dict[str, Tensor]) -> tuple[ResponseLogps, ResponseLogps]:
    """(chosen, rejected) responses of the batch's pairs."""
    logps, num_tokens = outputs.log_probs.sum(-1).chunk(2), inputs["response_mask"].sum(-1).chunk(2)
    chosen, rejected = (ResponseLogps(logps[i], inputs[name], num_tokens[i]) for i, name in enumerate(_REFERENCES))
    return chosen, rejected


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
    """Build the trainer of P-DPO; it stops by the loss. See `prm.training.trainer_base.build_trainer`."""
    return build_trainer(
        partial(
            PersonalizedDPOTrainer,
            alpha=config.alpha,
            objective=config.objective,
            data_collator=policy_collate,
            compute_metrics=dpo_metrics,
        ),
        partial(
            TrlConfig,
            max_length=None,
            disable_dropout=False,  # TRL would disable the adapters' dropout too
            precompute_ref_log_probs=True,
        ),
        checkpoint.model,
        checkpoint.tokenizer,
        policy_dataset(train),
        policy_dataset(validation),
        config,
        folder,
        stop_by="objective",
    )
