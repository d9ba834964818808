"""Comparisons encoded for P-DPO, with the reference's log-probabilities, as data sets and as batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from prm.checkpoint.checkpoint import Checkpoint
from prm.data.comparison import Comparison
from prm.features.reference_logps import completion, kept_reference_logps
from prm.models.backbones import processes
from prm.models.policy_model import Policy
from prm.training.encoded_pairs import DatasetRow, EncodedPair, collate, to_dataset
from prm.training.setup import encode_pairs_with_plain

REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names
INPUTS = ("input_ids", "attention_mask", "response_mask")
PLAIN = "plain_"  # prefix of the reference's inputs


@dataclass(frozen=True)
class PolicyPair:
    """A comparison encoded for the policy and, without user (`plain`), for the reference; with log pi_ref, nats.

    In bfloat16 `references` is `None`: log-probabilities then change by whole nats with the composition of a batch, so
    the reference is evaluated during training, on the same batches as the policy.
    """

    pair: EncodedPair
    plain: EncodedPair
    references: tuple[float, float] | None


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


def policy_collate(pairs: Sequence[DatasetRow]) -> dict[str, Tensor]:
    """`reward_trainer.collate`, plus the reference's log-probabilities [n] of both sides, or the plain texts."""
    batch = collate(pairs)
    if REFERENCES[0] in pairs[0]:
        return batch | {name: torch.tensor([pair[name] for pair in pairs]) for name in REFERENCES}
    plain = collate(
        [pair | {n.removeprefix(PLAIN): x for n, x in pair.items() if n.startswith(PLAIN)} for pair in pairs]
    )
    return batch | {PLAIN + name: plain[name] for name in INPUTS}


def policy_dataset(pairs: Sequence[PolicyPair]) -> Dataset:
    """Convert the pairs to a data set."""
    dataset = to_dataset(p.pair for p in pairs)
    references = [p.references for p in pairs if p.references is not None]
    if not references:
        plain = to_dataset(p.plain for p in pairs)
        return concatenate_datasets([dataset, plain.rename_columns({n: PLAIN + n for n in plain.features})], axis=1)
    for name, column in zip(REFERENCES, zip(*references, strict=True), strict=True):
        dataset = dataset.add_column(name, list(column))
    return dataset
