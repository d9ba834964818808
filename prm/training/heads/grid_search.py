"""Grid search over penalties, layers, poolings and kernels: every setting is fitted and scored on held-out folds."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from prm.config import LANDMARKS, FeatureSpec, Kernel, TrainConfig, format_features
from prm.errors import PrmError
from prm.io.progress import progress
from prm.metrics import correct
from prm.models.nystroem import Rbf
from prm.models.reward_model import standard_of
from prm.training.heads.objective import PairFeatures, Penalty, fit_head, margins
from prm.training.losses import bradley_terry, weighted_mean
from prm.users.build import build_user_model, init_near_zero
from prm.users.user_model import UserModel

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_SEARCH_TOLERANCE = 1e-6  # nats: far below the differences between settings


@dataclass(frozen=True)
class HeadData:
    """Comparisons over cached features, in folds.

    Args:
        features: hidden states of the distinct texts by layers and poolings, [t, d], not standardised.
        chosen, rejected: positions among the texts, int64 [n].
        rows: row of the comparison's user, int64 [n].
        p_chosen, weight: float32 [n].
        base: reward that each text has before a head adds to it, float32 [t], if any.
        fold: of each comparison's two responses, int64 [n, 2]. A comparison validates the fold that holds both, and
            trains for the folds that hold neither; -1 is no fold.
        part: the same for the parts on which the choice of settings is scored after choosing on the other parts; the
            folds if not given.
    """

    features: dict[FeatureSpec, Tensor]
    chosen: Tensor
    rejected: Tensor
    rows: Tensor
    p_chosen: Tensor
    weight: Tensor
    fold: Tensor
    base: Tensor | None = None
    part: Tensor | None = None

    def states(self, spec: FeatureSpec) -> Tensor:
        """Hidden states of the texts, [t, d]; those of several layers and poolings are concatenated."""
        if spec in self.features:
            return self.features[spec]
        single = {
            setting: part
            for held, states in self.features.items()
            for setting, part in zip(held, states.chunk(len(held), 1), strict=True)
        }
        return torch.cat([single[setting] for setting in spec], 1)

    def pairs(self, texts: Tensor) -> PairFeatures:
        """All comparisons over the head inputs of the texts, [t, d] (`head_states`)."""
        return PairFeatures(texts, self.chosen, self.rejected, self.rows, self.p_chosen, self.weight, self.base)


@dataclass(frozen=True)
class Trial:
    """One setting and its scores on held-out comparisons; log loss in nats per unit of weight."""

    feature_spec: FeatureSpec
    kernel: Kernel
    l2: float
    user_l2: float
    validation_nll: float
    validation_accuracy: float
    steps: int
    seconds: float
    carry: float = 1.0  # empirical Bayes: share of the users' covariance that carries over to held-out comparisons
    scale_variance: float = 0.0  # `stack`: variance of the factors by which users scale the population's logits

    def describe(self) -> str:
        """Describe the setting, for the log."""
        features = f"layers and pooling {' + '.join(format_features(self.feature_spec))}, kernel {self.kernel}"
        return f"{features}, l2 {self.l2:g}, user_l2 {self.user_l2:g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; features in the format of `reward.features`."""
        rest = asdict(self)
        rest.pop("feature_spec")
        return {"features": format_features(self.feature_spec), **rest}


def penalties(config: TrainConfig) -> list[Penalty]:
    """The penalties to try: the grid; for the uniform model as many values of l2 over the grid's range."""
    grid = config.search
    if config.users.kind != "uniform":
        return [Penalty(a, b) for a, b in itertools.product(grid.l2, grid.user_l2)]
    n = len(grid.l2) * len(grid.user_l2)
    low, high = min(grid.l2), max(grid.l2)
    if low == high or low == 0.0 or n <= len(grid.l2):
        return [Penalty(value, 0.0) for value in grid.l2]
    return [Penalty(float(value), 0.0) for value in np.geomspace(low, high, n)]


@dataclass(frozen=True)
class Search:
    """All settings and their held-out margins.

    Args:
        trials: in the order tried, s of them.
        margins: float32 [s, n]; NaN where no fold holds a comparison out.
    """

    trials: list[Trial]
    margins: Tensor

    def of(self, kernel: Kernel) -> "Search":
        """The settings with this kernel only."""
        index = [i for i, trial in enumerate(self.trials) if trial.kernel == kernel]
        return Search([self.trials[i] for i in index], self.margins[index])


def search(data: HeadData, config: TrainConfig, n_rows: int) -> Search:
    """Fit every setting on all folds but one, for each fold in turn.

    Folds and features run in parallel, one thread each: the matrix products are too small for several threads. Raises
    `PrmError` if no fold holds out a comparison.
    """
    grid, inputs = penalties(config), list(itertools.product(data.features, config.kernels))
    todo = list(itertools.product(range(len(inputs)), rounds_of(data.fold)))
    name = f"trying {len(inputs) * len(grid)} settings ({config.users.kind})"
    fits = side_by_side(
        lambda item: _fit_grid(data, config, n_rows, *inputs[item[0]], grid, *item[1]), todo, name, "fold"
    )
    margin = torch.full((len(inputs), len(grid), len(data.rows)), float("nan"))
    cost = torch.zeros(len(inputs), len(grid), 2)
    for (i, (_, held_out)), (margins_of_fold, cost_of_fold) in zip(todo, fits, strict=True):
        margin[i, :, held_out] = margins_of_fold
        cost[i] += cost_of_fold
    trials = [
        Trial(spec, kernel, p.l2, p.user_l2, *scored(m, data), int(steps), round(float(seconds), 3))
        for (spec, kernel), margins_of_grid, costs in zip(inputs, margin, cost, strict=True)
        for p, m, (steps, seconds) in zip(grid, margins_of_grid, costs, strict=True)
    ]
    return Search(trials, margin.flatten(0, 1))


def side_by_side(work: Callable[[Item], Result], todo: Sequence[Item], name: str, unit: str) -> list[Result]:
    """Run `work` on each item, one thread each, with progress; returns the results in order."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                return list(progress(pool.map(work, todo), desc=name, unit=unit, total=len(todo)))
            except KeyboardInterrupt:
                logger.warning("stopping when the %ss that have begun are done", unit)
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)


def rounds_of(fold: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (training positions, held-out positions) for each fold that has both; `fold` [n, 2] is as in `HeadData`.

    Raises `PrmError` if there is no such fold.
    """
    any_fold = False
    for k in range(int(fold.max()) + 1):
        train, held_out = ((fold != k).all(1).nonzero()[:, 0], (fold == k).all(1).nonzero()[:, 0])
        if len(train) and len(held_out):
            any_fold = True
            yield train, held_out
    if not any_fold:
        raise PrmError(
            "no fold holds out a comparison: lower 'search.folds', give more data or another 'data.holdout_by'"
        )


def scored(margin: Tensor, data: HeadData) -> tuple[float, float]:
    """(log loss in nats per unit of weight, accuracy) of the margins [n] that are not NaN."""
    held_out = ~margin.isnan()
    p, weight = data.p_chosen[held_out], data.weight[held_out]
    nll = float(weighted_mean(bradley_terry(margin[held_out], p), weight))
    return nll, float(np.nanmean(correct(margin[held_out], p)))


def _fit_grid(
    data: HeadData,
    config: TrainConfig,
    n_rows: int,
    spec: FeatureSpec,
    kernel: Kernel,
    grid: Sequence[Penalty],
    train: Tensor,
    held_out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fit heads on the pairs at `train`; returns margins [p, m] of those at `held_out`, and steps and seconds [p, 2].

    The strongest penalty comes first, and each convex fit starts from the previous solution.
    """
    pairs = data.pairs(compact(head_states(data, spec, kernel, config, train))[0])
    train_pairs, check = pairs.take(train), pairs.take(held_out)
    # users without a training comparison in this fold are scored as the generic user
    check = replace(check, rows=torch.where(torch.isin(check.rows, train_pairs.rows), check.rows, 0))
    margin, cost = torch.empty(len(grid), len(held_out)), torch.zeros(len(grid), 2)
    model: UserModel | None = None
    for i in sorted(range(len(grid)), key=lambda i: (-grid[i].l2, -grid[i].user_l2)):
        started = time.perf_counter()
        if model is None or not model.CAN_AVERAGE:  # no convex problem: the last solution is no good start
            model = new_model(config, n_rows, pairs.texts.shape[1])
        cost[i, 0] = fit_head(model, train_pairs, config.alpha, grid[i], _SEARCH_TOLERANCE)
        with torch.no_grad():
            margin[i] = margins(model, check)
        cost[i, 1] = time.perf_counter() - started
    return margin, cost


def new_model(config: TrainConfig, n_rows: int, dim: int) -> UserModel:
    model = build_user_model(config.users, n_rows, dim)
    init_near_zero(model, config.seed)
    return model


def compact(texts: Tensor) -> tuple[Tensor, Tensor]:
    """(coordinates [t, r] of `texts` [t, d] with the same inner products, r = min(t, d); their axes, [d, r]).

    Heads fitted to the coordinates give the same margins: a penalised optimum lies in the span of the texts.
    """
    if len(texts) >= texts.shape[1]:
        return texts, torch.eye(texts.shape[1])
    axes, coordinates = torch.linalg.qr(texts.T)
    return coordinates.T.contiguous(), axes


def head_states(
    data: HeadData, spec: FeatureSpec, kernel: Kernel, config: TrainConfig, train: Tensor | None = None
) -> Tensor:
    """Head inputs of the distinct texts, [t, d] or with a kernel [t, m] (`RewardModel.head_input`).

    Mean, scale and kernel are fitted to the texts of the comparisons at `train`, or to all texts if not given.
    """
    texts = data.states(spec)
    index = torch.arange(len(data.rows)) if train is None else train
    used = torch.unique(torch.cat([data.chosen[index], data.rejected[index]]))
    mean, scale = standard_of(texts[used])
    texts = (texts - mean) / scale
    if kernel == "linear":
        return texts
    features = Rbf(min(len(used), LANDMARKS), texts.shape[1])
    features.fit(texts[used], config.seed)
    return features(texts)
