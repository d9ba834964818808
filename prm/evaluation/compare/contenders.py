"""The user models that are compared: how each chooses its settings, is fitted, and takes in new users."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from prm.config import FeatureSpec, Kernel, TrainConfig, UserConfig
from prm.evaluation.compare.amortised import AmortisedSetting
from prm.evaluation.compare.config import BASELINES, Name
from prm.evaluation.compare.mlp import MlpSetting
from prm.evaluation.compare.networks import choose_network
from prm.evaluation.compare.problem import COUNTS, Fold, Problem
from prm.evaluation.compare.rules import LengthSign
from prm.training.heads.grid_search import HeadData, Search, head_states, search
from prm.training.heads.objective import PairFeatures
from prm.training.heads.settings_choice import Chosen
from prm.training.heads.user_model_choice import choose_settings, fit_chosen
from prm.training.user_fit import fit_heads
from prm.users.user_model import UserModel

_MLP_GRID = ((32, 0.5, 1.0), (32, 0.5, 100.0), (128, 0.2, 100.0), (128, 0.5, 1.0))  # size, dropout, l2
_AMORTISED_GRID = tuple(itertools.product((16, 64), (10.0, 100.0)))  # axes, l2


class Fitted(Protocol):
    """A model that was fitted to comparisons of the log."""

    def margins(self, data: HeadData) -> Tensor:
        """Logits of P(chosen > rejected), float32 [n]; users without comparisons in the fit are the generic user."""
        ...

    def with_new_users(self, data: HeadData) -> "Fitted":
        """The model with the users in `data`, whom it does not know, fitted to these comparisons."""
        ...


class Choice(Protocol):
    """Settings that were chosen by cross-validation on the training comparisons of a part.

    `margin`: held-out margins of these comparisons [n], NaN where no fold holds one out; `tried`: number of settings.
    """

    @property
    def margin(self) -> Tensor: ...

    @property
    def validation_nll(self) -> float: ...

    @property
    def tried(self) -> int: ...

    def fit(self, data: HeadData) -> Fitted:
        """Fit the chosen settings to comparisons."""
        ...

    def to_dict(self) -> dict[str, object]:
        """The settings, JSON-ready."""
        ...


class Task:
    """One part's training comparisons, and what all models start from.

    Args:
        data: the training comparisons, with inner folds.
        config: settings that all models have in common.
    """

    def __init__(self, problem: Problem, fold: Fold, config: TrainConfig):
        self.problem, self.fold, self.config = problem, fold, config
        self.data = problem.of(fold.train, fold.inner)
        self._searches: dict[Kernel, Search] = {}
        self._locks: Mapping[Kernel, Lock] = {"linear": Lock(), "rbf": Lock()}

    @property
    def linear(self) -> Search:
        """The search of the uniform model on hidden states."""
        return self._shared("linear")

    @property
    def kernel(self) -> Search:
        """The search of the uniform model with a kernel."""
        return self._shared("rbf")

    @property
    def single(self) -> tuple[FeatureSpec, float]:
        """Features and l2 of the best single setting of the uniform linear model."""
        best = min(self.linear.trials, key=lambda trial: trial.validation_nll)
        return best.feature_spec, best.l2

    def reading(self, *specs: FeatureSpec) -> HeadData:
        """The training comparisons over these features; over all hidden states if none is named."""
        features = self.data.features
        kept = specs or tuple(spec for spec in features if spec != COUNTS)
        return replace(self.data, features={spec: features[spec] for spec in kept})

    def _shared(self, kernel: Kernel) -> Search:
        """Searched by the first model that needs it; models that run beside it wait."""
        with self._locks[kernel]:
            if kernel not in self._searches:
                self._searches[kernel] = search(self.reading(), self._uniform(kernel), 1)
            return self._searches[kernel]

    def _uniform(self, kernel: Kernel) -> TrainConfig:
        grid = replace(self.config.search, kernels=[kernel], user_l2=[1.0])
        return replace(self.config, users=UserConfig("uniform"), search=grid)


def contenders() -> Mapping[Name, Callable[[Task], Choice]]:
    """How each model chooses its settings, by name."""
    return _CHOOSE


def is_personal(name: Name) -> bool:
    """Whether a model tells users apart by more than their taste for length."""
    return name not in BASELINES


@dataclass(frozen=True)
class HeadChoice:
    """Settings of linear heads, chosen and fitted as `prm train` does."""

    chosen: Chosen
    config: TrainConfig
    features: Mapping[FeatureSpec, Tensor]
    n_rows: int
    tried: int

    @property
    def margin(self) -> Tensor:
        return self.chosen.margin

    @property
    def validation_nll(self) -> float:
        return self.chosen.validation_nll

    def fit(self, data: HeadData) -> "HeadFit":
        data = replace(data, features=dict(self.features))
        texts = head_states(data, self.chosen.feature_spec, self.chosen.kernel, self.config)
        model = fit_chosen(data, self.chosen, self.config, self.n_rows, texts)
        known = torch.zeros(self.n_rows, dtype=torch.bool)
        known[data.rows] = True
        return HeadFit(model, texts, known, self.chosen.user_l2)

    def to_dict(self) -> dict[str, object]:
        users = self.config.users
        only = {"cluster": {"clusters": users.clusters}, "low_rank": {"rank": users.rank}}
        chosen = self.chosen.to_dict()
        chosen["averaged"] = len(self.chosen.trials)
        return {"alpha": self.config.alpha, **only.get(users.kind, {}), **chosen}


@dataclass(frozen=True)
class HeadFit:
    """A user model over the head inputs [t, d] of all texts; `known` users have comparisons in the fit."""

    model: UserModel
    texts: Tensor
    known: Tensor
    user_l2: float

    @torch.no_grad()
    def margins(self, data: HeadData) -> Tensor:
        pairs = data.pairs(self.texts)
        rows = torch.where(self.known[pairs.rows], pairs.rows, 0)
        base = None if pairs.base is None else pairs.base[pairs.chosen] - pairs.base[pairs.rejected]
        parts = [self.model.margins(d, rows[k], None if base is None else base[k]) for k, d in pairs.differences()]
        return torch.cat(parts)

    def with_new_users(self, data: HeadData) -> "HeadFit":
        if not self.model.per_row():
            return self
        rows, position = torch.unique(data.rows, return_inverse=True)
        every = torch.cat([torch.zeros(1, dtype=torch.long), rows])
        fitted = self.model.subset(every)
        for i in range(1, len(every)):
            fitted.forget_row(i)
        pairs: PairFeatures = replace(data.pairs(self.texts), rows=position + 1)
        fit_heads(fitted, pairs, torch.ones(len(every), dtype=torch.bool), self.user_l2)
        model, known = copy.deepcopy(self.model), self.known.clone()
        model.scatter_(every, fitted)
        known[rows] = True
        return HeadFit(model, self.texts, known, self.user_l2)


def _best(task: Task, data: HeadData, configs: Sequence[TrainConfig], start: Search | None = None) -> HeadChoice:
    """The best by cross-validation of several settings that are no penalties, each with its penalties searched."""
    found = [(*choose_settings(data, config, task.problem.n_rows, start), config) for config in configs]
    chosen, _, config = min(found, key=lambda one: one[0].validation_nll)
    return HeadChoice(chosen, config, data.features, task.problem.n_rows, sum(len(trials) for _, trials, _ in found))


def _uniform(task: Task) -> Choice:
    return _best(task, task.reading(), [task.config.of_kind("uniform")], task.linear)


def _uniform_kernel(task: Task) -> Choice:
    return _best(task, task.reading(), [task.config.of_kind("uniform")], task.kernel)


def _rules(task: Task) -> Choice:
    """A uniform head on plain counts."""
    data = task.reading(COUNTS)
    return _best(
        task,
        replace(data, base=None),
        [_grid(task, UserConfig("uniform"), user_l2=[1.0], l2=[0.01 * 10**k for k in range(6)])],
    )


def _individual(task: Task) -> Choice:
    spec, l2 = task.single
    configs = [replace(_grid(task, UserConfig(), l2=[l2]), alpha=a) for a in dict.fromkeys((task.config.alpha, 1.0))]
    return _best(task, task.reading(spec), configs)


def _cluster(task: Task) -> Choice:
    spec, l2 = task.single
    configs = [_grid(task, UserConfig("cluster", clusters=k), l2=[l2]) for k in (2, 8)]
    return _best(task, task.reading(spec), configs)


def _low_rank(task: Task) -> Choice:
    spec, l2 = task.single
    configs = [_grid(task, UserConfig("low_rank", rank=k), l2=[l2], user_l2=[0.1, 1.0, 10.0, 100.0]) for k in (4, 16)]
    return _best(task, task.reading(spec), configs)


def _bayes(task: Task) -> Choice:
    return _best(task, task.reading(), [_grid(task, UserConfig("bayes"))], task.linear)


def _stack(task: Task) -> Choice:
    both = Search([*task.linear.trials, *task.kernel.trials], torch.cat([task.linear.margins, task.kernel.margins]))
    config = _grid(task, UserConfig("stack"))
    config = replace(config, search=replace(config.search, kernels=["linear", "rbf"]))
    return _best(task, task.reading(), [config], both)


def _mlp(task: Task) -> Choice:
    spec, _ = task.single
    user_l2 = sorted(task.config.search.user_l2)
    settings = [MlpSetting(spec, *one, user_l2, task.config, task.problem.n_rows) for one in _MLP_GRID]
    return choose_network(settings, task.data, "mlp")


def _amortised(task: Task) -> Choice:
    settings = [AmortisedSetting(*task.single, *one, task.config, task.problem.n_rows) for one in _AMORTISED_GRID]
    return choose_network(settings, task.data, "amortised")


def _length_sign(task: Task) -> Choice:
    return LengthSign.choose(task.data, task.problem.words)


def _grid(
    task: Task, users: UserConfig, l2: list[float] | None = None, user_l2: list[float] | None = None
) -> TrainConfig:
    """The common settings with this user model and these penalties."""
    grid = replace(task.config.search, l2=l2 or task.config.search.l2, user_l2=user_l2 or task.config.search.user_l2)
    return replace(task.config, users=users, search=grid)


_CHOOSE: Mapping[Name, Callable[[Task], Choice]] = {
    "uniform": _uniform,
    "uniform_kernel": _uniform_kernel,
    "rules": _rules,
    "length_sign": _length_sign,
    "individual": _individual,
    "cluster": _cluster,
    "low_rank": _low_rank,
    "bayes": _bayes,
    "stack": _stack,
    "mlp": _mlp,
    "amortised": _amortised,
}
