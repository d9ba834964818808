"""Encoded comparisons, as data sets and as batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from prm.data.encoding import Encoded, pad

DatasetRow = dict[str, Any]  # its columns have the types that `datasets` gives them

LABELS = ("p_chosen", "weight")


@dataclass(frozen=True)
class EncodedPair:
    """An encoded comparison: two sequences that hold the user's row, and the label."""

    chosen: Encoded
    rejected: Encoded
    p_chosen: float
    weight: float


def collate(pairs: Sequence[DatasetRow]) -> dict[str, Tensor]:
    """[2n, l] ids and masks, chosen first, as in TRL; labels and weights [n]."""
    sequences = [
        Encoded(pair[f"{side}_ids"], tuple(pair[f"{side}_response"]))
        for side in ("chosen", "rejected")
        for pair in pairs
    ]
    batch = pad(sequences)._asdict()
    batch |= {name: torch.tensor([pair[name] for pair in pairs]) for name in LABELS}
    return batch


def to_dataset(pairs: Iterable[EncodedPair]) -> Dataset:
    """The pairs as a data set with the columns that TRL takes as already tokenised."""
    rows = [
        {
            "chosen_ids": pair.chosen.ids,
            "rejected_ids": pair.rejected.ids,
            "chosen_response": list(pair.chosen.response),
            "rejected_response": list(pair.rejected.response),
            "p_chosen": float(pair.p_chosen),
            "weight": float(pair.weight),
        }
        for pair in pairs
    ]
    return Dataset.from_list(rows)


def is_encoded(dataset: object) -> bool:
    """True for what `to_dataset` makes."""
    return isinstance(dataset, Dataset) and {"chosen_ids", "chosen_response"} <= set(dataset.column_names)
