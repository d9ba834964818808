"""Which penalty and reading: every setting fitted, and judged on comparisons held out."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from prm.config import Kernel, TrainConfig
from prm.errors import PrmError
from prm.io.progress import progress
from prm.layer_pooling import FeatureSpec, words
from prm.metrics import correct
from prm.models.nystroem import LANDMARKS, Rbf
from prm.models.reward_model import build_user_model, standard_of
from prm.training.head_objective import PairFeatures, Penalty, fit_head, margins
from prm.training.losses import bradley_terry, weighted_mean
from prm.users.models import Cluster, UserModel, init_near_zero

Item = TypeVar("Item")
Result = TypeVar("Result")

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
        part: the same of the parts in which a choice of settings is judged that the others have made; the folds, if
            not given.
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

    def states(self, reading: FeatureSpec) -> Tensor:
        """What the reading gives of the texts, [t, d]; also of several readings one behind the other."""
        if reading in self.features:
            return self.features[reading]
        return torch.cat([self.features[(setting,)] for setting in reading], 1)

    def pairs(self, texts: Tensor) -> PairFeatures:
        """All comparisons over what heads see of the texts, [t, d] (`head_states`)."""
        return PairFeatures(texts, self.chosen, self.rejected, self.rows, self.p_chosen, self.weight, self.base)


@dataclass(frozen=True)
class Trial:
    """One setting and how it did on comparisons it was not fitted to; likelihoods in nats per unit of weight."""

    reading: FeatureSpec
    kernel: Kernel
    l2: float
    user_l2: float
    validation_nll: float
    validation_accuracy: float
    steps: int
    seconds: float
    carry: float = 1.0  # of empirical-Bayes people: share of their variance that carries over to what is held out

    def describe(self) -> str:
        """The setting in words, for the log."""
        read = f"layers and pooling {' + '.join(words(self.reading))}, kernel {self.kernel}"
        return f"{read}, l2 {self.l2:g}, user_l2 {self.user_l2:g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the reading as `reward.features` takes it."""
        rest = asdict(self)
        rest.pop("reading")
        return {"features": words(self.reading), **rest}


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


@dataclass(frozen=True)
class Search:
    """Every setting, and what it says of comparisons that it was not fitted to.

    Args:
        trials: in the order tried, s of them.
        margins: float32 [s, n]; NaN where no fold holds a comparison out.
    """

    trials: list[Trial]
    margins: Tensor

    def of(self, kernel: Kernel) -> "Search":
        """The settings with this kernel alone."""
        places = [place for place, trial in enumerate(self.trials) if trial.kernel == kernel]
        return Search([self.trials[place] for place in places], self.margins[places])


def search(data: HeadData, config: TrainConfig, n_rows: int) -> Search:
    """Fit every setting on all folds but one, for each fold in turn.

    Folds and readings run side by side, one thread each: the products are too small to share one. Raises `PrmError`
    where no fold holds out a comparison.
    """
    tried, alike = penalties(config), list(itertools.product(data.features, config.kernels))
    todo = list(itertools.product(range(len(alike)), rounds_of(data.fold)))
    name = f"trying {len(alike) * len(tried)} settings ({config.users.kind})"
    found = side_by_side(lambda item: _path(data, config, n_rows, *alike[item[0]], tried, *item[1]), todo, name, "fold")
    margin = torch.full((len(alike), len(tried), len(data.rows)), float("nan"))
    spent = torch.zeros(len(alike), len(tried), 2)
    for (place, (_, held_out)), (margins_of_fold, spent_on_it) in zip(todo, found, strict=True):
        margin[place, :, held_out] = margins_of_fold
        spent[place] += spent_on_it
    trials = [
        Trial(reading, kernel, p.l2, p.user_l2, *scored(m, data), int(steps), round(float(seconds), 3))
        for (reading, kernel), ms, of_each in zip(alike, margin, spent, strict=True)
        for p, m, (steps, seconds) in zip(tried, ms, of_each, strict=True)
    ]
    return Search(trials, margin.flatten(0, 1))


def side_by_side(work: Callable[[Item], Result], todo: Sequence[Item], name: str, unit: str) -> list[Result]:
    """What becomes of each item, in order; one thread each, with progress."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(progress(pool.map(work, todo), desc=name, unit=unit, total=len(todo)))
    finally:
        torch.set_num_threads(threads)


def rounds_of(fold: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(positions that train, positions held out) of each fold that has both, from folds [n, 2] as `HeadData` has them.

    Raises `PrmError` where there is none.
    """
    found = False
    for k in range(int(fold.max()) + 1):
        learns, held_out = ((fold != k).all(1).nonzero()[:, 0], (fold == k).all(1).nonzero()[:, 0])
        if len(learns) and len(held_out):
            found = True
            yield learns, held_out
    if not found:
        raise PrmError(
            "no fold holds out a comparison: lower 'search.folds', give more data or another 'data.holdout_by'"
        )


def scored(margin: Tensor, data: HeadData) -> tuple[float, float]:
    """(nats per unit of weight, accuracy) of margins [n] where they are not NaN."""
    judged = ~margin.isnan()
    p, weight = data.p_chosen[judged], data.weight[judged]
    nll = float(weighted_mean(bradley_terry(margin[judged], p), weight))
    return nll, float(np.nanmean(correct(margin[judged], p)))


def _path(
    data: HeadData,
    config: TrainConfig,
    n_rows: int,
    reading: FeatureSpec,
    kernel: Kernel,
    tried: Sequence[Penalty],
    learns: Tensor,
    held_out: Tensor,
) -> tuple[Tensor, Tensor]:
    """(margins [p, m] of the pairs at `held_out`, steps and seconds [p, 2]) by heads fitted on those at `learns`.

    The strongest penalty goes first, and each convex fit starts where the last one ended.
    """
    pairs = data.pairs(compact(head_states(data, reading, kernel, config, learns))[0])
    train, check = pairs.take(learns), pairs.take(held_out)
    # whoever has no comparison left to learn from is a stranger here
    check = replace(check, rows=torch.where(torch.isin(check.rows, train.rows), check.rows, 0))
    found, spent = torch.empty(len(tried), len(held_out)), torch.zeros(len(tried), 2)
    model: UserModel | None = None
    for i in sorted(range(len(tried)), key=lambda i: (-tried[i].l2, -tried[i].user_l2)):
        started = time.perf_counter()
        if model is None or isinstance(model, Cluster):
            model = new_model(config, n_rows, pairs.texts.shape[1])
        spent[i, 0] = fit_head(model, train, config.alpha, tried[i], _SEARCH_TOLERANCE)
        with torch.no_grad():
            found[i] = margins(model, check)
        spent[i, 1] = time.perf_counter() - started
    return found, spent


def new_model(config: TrainConfig, n_rows: int, dim: int) -> UserModel:
    model = build_user_model(config.users, n_rows, dim)
    init_near_zero(model, config.seed)
    return model


def compact(texts: Tensor) -> tuple[Tensor, Tensor]:
    """(coordinates [t, r] of texts [t, d] with the same inner products, r = min(t, d); their axes, [d, r]).

    Heads that are fitted to them give the same margins: a penalised optimum lies in the span of the texts.
    """
    if len(texts) >= texts.shape[1]:
        return texts, torch.eye(texts.shape[1])
    axes, coordinates = torch.linalg.qr(texts.T)
    return coordinates.T.contiguous(), axes


def head_states(
    data: HeadData, reading: FeatureSpec, kernel: Kernel, config: TrainConfig, train: Tensor | None = None
) -> Tensor:
    """What heads see of the distinct texts, [t, d] or with a kernel [t, m] (`RewardModel.head_input`).

    Mean, scale and kernel are those of the texts in the comparisons at `train`; of all texts where not given.
    """
    texts = data.states(reading)
    index = torch.arange(len(data.rows)) if train is None else train
    used = torch.unique(torch.cat([data.chosen[index], data.rejected[index]]))
    mean, scale = standard_of(texts[used])
    texts = (texts - mean) / scale
    if kernel == "linear":
        return texts
    features = Rbf(min(len(used), LANDMARKS), texts.shape[1])
    features.fit(texts[used], config.seed)
    return features(texts)
