"""Training the linear head on cached features, against training with the frozen backbone in the loop."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.ratio import Ratio
from benchmarks.users import words
from prm.config import RewardModelConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.data.encoding import pad
from prm.features.hidden_states import read_features
from prm.training.heads.objective import PairFeatures, Penalty, fit_head
from prm.training.losses import personalized_bradley_terry
from prm.training.setup import encode_pairs, encode_texts, new_checkpoint
from prm.users.index import UserIndex

_EPOCHS, _BATCH = 10, 8
_PENALTY = Penalty(1.0, 1.0)


def ratios(backbone: str = "smollm2-135m", pairs: int = 32, length: int = 60) -> Iterator[Ratio]:
    """Ten epochs of the two-term loss with the backbone in the loop (one is timed, and counts ten times), over caching.

    Caching computes the features of every text once into an empty cache, then fits the head until convergence.

    Args:
        pairs: comparisons, each with its own prompt; prompts and responses have `length` words.
    """
    draw = torch.Generator().manual_seed(0)
    log = [
        Comparison(f"person {i % 10}", words(length, draw), words(length, draw), words(length, draw))
        for i in range(pairs)
    ]
    config = TrainConfig(users=UserConfig("individual"), reward=RewardModelConfig(pooling="mean"))
    config.backbone.name = backbone
    checkpoint = new_checkpoint(config, UserIndex.from_comparisons(log))
    model, users, encoder = checkpoint.model, checkpoint.users, checkpoint.encoder()
    sequences = encode_pairs(encoder, users, log)
    once, index = encode_texts(encoder, log)
    rows, ones = torch.tensor([users.row(c.user_id) for c in log]), torch.ones(pairs)
    optimizer = torch.optim.AdamW(model.user_model.parameters())

    def epoch() -> None:
        for start in range(0, pairs, _BATCH):
            part = sequences[start : start + _BATCH]
            batch = pad([s.chosen for s in part] + [s.rejected for s in part])
            both = model(*batch, terms="both")
            user, generic = (r.chunk(2) for r in (both.user, both.generic))
            margins = user[0] - user[1], generic[0] - generic[1]
            personalized_bradley_terry(*margins, ones[start : start + _BATCH], config.alpha).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def cached() -> None:
        with empty_cache():
            states = read_features(model, once, [model.feature_spec])[model.feature_spec]
        fit_head(model.user_model, PairFeatures(states, index[0], index[1], rows, ones, ones), config.alpha, _PENALTY)

    yield Ratio(
        "ten epochs of the linear head: frozen backbone in the loop / cached features, reading them included",
        epoch,
        cached,
        at_least=9.0,
        scale=float(_EPOCHS),
        repeats=3,
    )


@contextmanager
def empty_cache() -> Iterator[Path]:
    """The folder of a cache that is empty when the block begins, and is removed after it."""
    before = os.environ.get("PRM_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PRM_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("PRM_CACHE")
            os.environ.update({"PRM_CACHE": before} if before is not None else {})
