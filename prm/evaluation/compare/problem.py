"""The log of a comparison as arrays, and its parts: what is trained on, held out, reversed, and kept for new users."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prm.config import FeatureSpec
from prm.data.baselines import count_words
from prm.data.comparison import Comparison
from prm.data.encoding import Encoded
from prm.data.splits import folds, training_holdout, when
from prm.data.text_counts import text_counts
from prm.evaluation.compare.config import CompareModelsConfig
from prm.features.hidden_states import Workers, read_features
from prm.training.heads.grid_search import HeadData
from prm.training.linear_heads import elsewhere, feature_specs_of, folds_of
from prm.training.setup import encode_texts, new_checkpoint
from prm.users.index import UserIndex

logger = logging.getLogger(__name__)

COUNTS: FeatureSpec = ((1, "counts"),)  # plain counts instead of hidden states
_FEWEST_TO_HALVE = 2


@dataclass(frozen=True)
class Problem:
    """All comparisons of a log.

    Args:
        comparisons: the records, n of them.
        users: the user of each row.
        data: all comparisons over the features of all texts, plain counts among them; `fold` holds the parts.
        words: number of words of each text's response, float32 [t].
        reversed_rows: whether the labels of a row's user are reversed in the flip test, bool [rows].
        group: the part in which the user of a row counts as new, int64 [rows].
        order: position of each comparison among those of its user, int64 [n]: by time, or at random.
        has_user_text: whether the log has a `user_text`, which no model reads here.
    """

    comparisons: Sequence[Comparison]
    users: UserIndex
    data: HeadData
    words: Tensor
    reversed_rows: Tensor
    group: Tensor
    order: Tensor
    has_user_text: bool = False

    @property
    def n_rows(self) -> int:
        """Number of rows of user models, with the generic user's."""
        return self.users.n_rows

    def of(self, index: Tensor, fold: Tensor | None = None) -> HeadData:
        """The comparisons at `index`, with other folds, [m, 2], if given."""
        data = self.data
        rows = {name: getattr(data, name)[index] for name in ("chosen", "rejected", "rows", "p_chosen", "weight")}
        return replace(data, **rows, fold=data.fold[index] if fold is None else fold, part=None)

    def reversed(self, data: HeadData) -> HeadData:
        """The same comparisons, with the labels of half of the users reversed."""
        return replace(data, p_chosen=torch.where(self.reversed_rows[data.rows], 1.0 - data.p_chosen, data.p_chosen))


def take(data: HeadData, index: Tensor) -> HeadData:
    """The comparisons at `index`, with their folds."""
    names = ("chosen", "rejected", "rows", "p_chosen", "weight", "fold")
    return replace(data, **{name: getattr(data, name)[index] for name in names}, part=None)


@dataclass(frozen=True)
class Fold:
    """One part held out.

    Args:
        number: of the part.
        train: the comparisons that are trained on, int64; they share nothing with the part by `data.holdout_by`.
        test: those that are held out, int64.
        inner: folds of the training comparisons, by which settings are chosen, [len(train), 2].
        new_rows: rows of the users who count as new in this part and have comparisons on both sides, int64.
    """

    number: int
    train: Tensor
    test: Tensor
    inner: Tensor
    new_rows: Tensor


def read_problem(
    config: CompareModelsConfig, comparisons: Sequence[Comparison], workers: Workers | None = None
) -> Problem:
    """Features of every text, read once and without `user_text`, and the parts of the log.

    Args:
        workers: who reads the texts, if not this process.

    Raises `PrmError` if the log cannot be cut into so many parts.
    """
    train_config = config.train_config()
    has_user_text = any(c.user_text for c in comparisons)
    comparisons = [replace(c, user_text="") for c in comparisons]
    users = UserIndex.from_comparisons(comparisons)
    fold = _parts(config, comparisons)
    checkpoint = new_checkpoint(train_config, users)
    texts, index = encode_texts(checkpoint.encoder(), comparisons)
    specs = feature_specs_of(train_config, checkpoint.model)
    features = read_features(checkpoint.model, texts, specs, elsewhere=elsewhere(workers, checkpoint))
    with torch.no_grad():
        base = checkpoint.model.base_reward(features[specs[0]].to(checkpoint.model.standard_mean.device))
    responses = _responses(comparisons, texts, index)
    features = {**features, COUNTS: torch.from_numpy(text_counts(responses)).float()}
    rows = torch.tensor([users.row(c.user_id) for c in comparisons])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons])
    base = base.cpu() if base is not None else None
    data = HeadData(features, index[0], index[1], rows, labels[:, 0], labels[:, 1], fold, base)
    words = torch.tensor([float(count_words(text)) for text in responses])
    by_time = config.data.holdout_by == "time"
    drawn = _draws(users.n_rows, config)
    order = _order(comparisons, rows, by_time, config.seed)
    return Problem(comparisons, users, data, words, *drawn, order, has_user_text)


def folds_to_hold_out(problem: Problem, config: CompareModelsConfig) -> list[Fold]:
    """Every part with comparisons to train on and to test on, with its inner folds."""
    inner_config, parts = config.train_config(), problem.data.fold
    found = []
    for k in range(int(parts.max()) + 1):
        train, test = ((parts != k).all(1).nonzero()[:, 0], (parts == k).all(1).nonzero()[:, 0])
        if not len(train) or not len(test):
            continue
        inner = folds_of(inner_config, [problem.comparisons[i] for i in train.tolist()])
        rows = problem.data.rows
        both = torch.from_numpy(np.intersect1d(rows[train].numpy(), rows[test].numpy()))
        found.append(Fold(k, train, test, inner, both[problem.group[both] == k % config.folds]))
    return found


def _parts(config: CompareModelsConfig, comparisons: Sequence[Comparison]) -> Tensor:
    """The part that holds each response out, [n, 2]; -1 always trains."""
    if config.data.holdout_by == "given":
        held_out = [c.metadata.get("split") != "train" for c in comparisons]
        return torch.tensor([[0, 0] if held else [-1, -1] for held in held_out])
    by = training_holdout(config.data.holdout_by, comparisons)
    return torch.tensor(folds(comparisons, by, config.folds, config.seed))


def _draws(n_rows: int, config: CompareModelsConfig) -> tuple[Tensor, Tensor]:
    """(half of the users, whose labels are reversed; the part in which each user counts as new), by row."""
    draw = np.random.default_rng([config.seed, n_rows])
    flipped = np.zeros(n_rows, np.bool_)
    flipped[1 + draw.permutation(n_rows - 1)[: (n_rows - 1) // 2]] = n_rows > _FEWEST_TO_HALVE
    group = np.zeros(n_rows, np.int64)
    group[1 + draw.permutation(n_rows - 1)] = np.arange(n_rows - 1) % config.folds
    return torch.from_numpy(flipped), torch.from_numpy(group)


def _order(comparisons: Sequence[Comparison], rows: Tensor, by_time: bool, seed: int) -> Tensor:
    draw = np.random.default_rng([seed, len(comparisons)]).permutation(len(comparisons)).astype(np.float64)
    key = np.array([when(c) for c in comparisons]) if by_time else draw
    return positions_within_users(rows, torch.from_numpy(key), torch.from_numpy(draw))


def positions_within_users(rows: Tensor, *keys: Tensor) -> Tensor:
    """The position of each comparison among those of its user, from 0, int64 [n].

    Args:
        rows: the user of each comparison, [n].
        keys: what a user's comparisons are sorted by, each [n]; the later ones decide between equal ones.
    """
    by_user = np.lexsort([values.numpy() for values in (*reversed(keys), rows)])
    counts = np.bincount(rows.numpy())
    positions = np.empty(len(rows), np.int64)
    positions[by_user] = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
    return torch.from_numpy(positions)


def _responses(comparisons: Sequence[Comparison], texts: Sequence[Encoded], index: Tensor) -> list[str]:
    """The response of each text."""
    responses = [""] * len(texts)
    for c, i, j in zip(comparisons, index[0].tolist(), index[1].tolist(), strict=True):
        responses[i], responses[j] = c.chosen, c.rejected
    return responses
