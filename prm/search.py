"""Which penalty and reading: every setting fitted, and judged on comparisons held out."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prm.config import Kernel, TrainConfig
from prm.errors import PrmError
from prm.heads import PairFeatures, Penalty, fit_head, margins
from prm.kernel import LANDMARKS, Rbf
from prm.losses import bradley_terry, weighted_mean
from prm.metrics import correct
from prm.model import build_user_model, standard_of
from prm.progress import progress
from prm.readings import Reading, words
from prm.user_models import UserModel, start_near_zero

_SEARCH_TOLERANCE = 1e-6  # nats: far below what tells one setting from another


@dataclass(frozen=True)
class HeadData:
    """Comparisons over cached features, in folds.

    Args:
        features: what each reading gives of the distinct texts, [t, d], not standardised.
        chosen, rejected: positions among the texts, int64 [n].
        rows: row of the judge, int64 [n].
        p_chosen, weight: float32 [n].
        base: reward that each text has before a head adds to it, float32 [t], if any.
        fold: of each comparison's two answers, int64 [n, 2]. It validates the fold in which both are, and trains
            for those in which neither is; -1 is no fold.
    """

    features: dict[Reading, Tensor]
    chosen: Tensor
    rejected: Tensor
    rows: Tensor
    p_chosen: Tensor
    weight: Tensor
    fold: Tensor
    base: Tensor | None = None

    def pairs(self, texts: Tensor) -> PairFeatures:
        """All comparisons over what heads see of the texts, [t, d] (`head_states`)."""
        return PairFeatures(texts, self.chosen, self.rejected, self.rows, self.p_chosen, self.weight, self.base)


@dataclass(frozen=True)
class Trial:
    """One setting and how it did on comparisons it was not fitted to; likelihoods in nats per unit of weight."""

    reading: Reading
    kernel: Kernel
    l2: float
    user_l2: float
    validation_nll: float
    validation_accuracy: float
    steps: int
    seconds: float
    carry: float = 1.0  # of empirical-Bayes people: share of their variance that carries over to what is held out
    temperature: float = 1.0  # of their logits

    def describe(self) -> str:
        """The setting in words, for the log."""
        read = f"layers and pooling {' + '.join(words(self.reading))}, kernel {self.kernel}"
        return f"{read}, l2 {self.l2:g}, user_l2 {self.user_l2:g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the reading as `reward.reads` takes it."""
        rest = asdict(self)
        rest.pop("reading")
        return {"reads": words(self.reading), **rest}


def penalties(config: TrainConfig) -> list[Penalty]:
    """The penalties to try: the grid, or for the uniform model as many values of l2 over the grid's whole range."""
    grid = config.search
    if config.users.kind != "uniform":
        return [Penalty(a, b) for a, b in itertools.product(grid.l2, grid.user_l2)]
    n = len(grid.l2) * len(grid.user_l2)
    low, high = min(grid.l2), max(grid.l2)
    if low == high or low == 0.0 or n <= len(grid.l2):
        return [Penalty(value, 0.0) for value in grid.l2]
    return [Penalty(float(value), 0.0) for value in np.geomspace(low, high, n)]


def search(data: HeadData, config: TrainConfig, n_rows: int) -> list[Trial]:
    """Fit every setting on all folds but one, for each fold in turn; trials in the order tried.

    Settings run side by side, one thread each: the products are too small to share one.
    """
    todo = list(itertools.product(data.features, config.kernels, penalties(config)))
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            trials = pool.map(lambda item: _try(data, config, n_rows, *item), todo)
            bar = progress(trials, desc=f"trying settings ({config.users.kind})", unit="setting", total=len(todo))
            return list(bar)
    finally:
        torch.set_num_threads(threads)


def _try(data: HeadData, config: TrainConfig, n_rows: int, reading: Reading, kernel: Kernel, penalty: Penalty) -> Trial:
    started, steps = time.perf_counter(), 0
    margin = torch.full_like(data.p_chosen, float("nan"))
    for fold in range(int(data.fold.max()) + 1):
        held_out, train = (data.fold == fold).all(1), (data.fold != fold).all(1)
        if not held_out.any() or not train.any():
            continue
        learns = train.nonzero().squeeze(1)
        texts = compact(head_states(data, reading, kernel, config, learns))
        margin[held_out], taken = _margins_of_fold(data.pairs(texts), config, n_rows, penalty, learns, held_out)
        steps += taken
    judged = ~margin.isnan()
    if not judged.any():
        raise PrmError("no fold holds out a comparison: lower 'search.folds', give more data or another 'data.split'")
    p, weight = data.p_chosen[judged], data.weight[judged]
    nll = float(weighted_mean(bradley_terry(margin[judged], p), weight))
    right = float(np.nanmean(correct(margin[judged], p)))
    seconds = round(time.perf_counter() - started, 3)
    return Trial(reading, kernel, penalty.l2, penalty.user_l2, nll, right, steps, seconds)


def _margins_of_fold(
    pairs: PairFeatures, config: TrainConfig, n_rows: int, penalty: Penalty, train: Tensor, held_out: Tensor
) -> tuple[Tensor, int]:
    """Margins of the pairs `held_out` (bool) by a head fitted on those at `train`, and the steps it took."""
    validation = held_out.nonzero().squeeze(1)
    model = _new_model(config, n_rows, pairs.texts.shape[1])
    steps = fit_head(model, pairs.take(train), config.alpha, penalty, _SEARCH_TOLERANCE)
    # whoever has no comparison left to learn from is a stranger here
    seen = torch.isin(pairs.rows[validation], pairs.rows[train])
    check = replace(pairs.take(validation), rows=torch.where(seen, pairs.rows[validation], 0))
    with torch.no_grad():
        return margins(model, check), steps


def fit_best(data: HeadData, best: Trial, config: TrainConfig, n_rows: int, texts: Tensor) -> UserModel:
    """The winning setting fitted on everything, over what heads see of the texts, [t, d]."""
    model = _new_model(config, n_rows, texts.shape[1])
    fit_head(model, data.pairs(texts), config.alpha, Penalty(best.l2, best.user_l2))
    return model


def _new_model(config: TrainConfig, n_rows: int, dim: int) -> UserModel:
    model = build_user_model(config.users, n_rows, dim)
    start_near_zero(model, config.seed)
    return model


def compact(texts: Tensor) -> Tensor:
    """Coordinates [t, r] of texts [t, d] with the same inner products, r = min(t, d).

    Heads that are fitted to them give the same margins: a penalised optimum lies in the span of the texts.
    """
    if len(texts) >= texts.shape[1]:
        return texts
    return torch.linalg.qr(texts.T, mode="r").R.T.contiguous()


def head_states(
    data: HeadData, reading: Reading, kernel: Kernel, config: TrainConfig, train: Tensor | None = None
) -> Tensor:
    """What heads see of the distinct texts, [t, d] or with a kernel [t, m] (`RewardModel.head_input`).

    Mean, scale and kernel are those of the texts in the comparisons at `train`; of all texts where not given.
    """
    texts = data.features[reading]
    index = torch.arange(len(data.rows)) if train is None else train
    used = torch.unique(torch.cat([data.chosen[index], data.rejected[index]]))
    if config.reward.standardise:
        mean, scale = standard_of(texts[used])
        texts = (texts - mean) / scale
    if kernel == "linear":
        return texts
    features = Rbf(min(len(used), LANDMARKS), texts.shape[1])
    features.fit(texts[used], config.seed)
    return features(texts)
