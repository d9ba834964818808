"""Choose settings by cross-validation: those within one standard error of the best are averaged.

The single best of many similar settings is partly luck, and its log loss on the comparisons that selected it is too
low. All settings within one standard error of the best are kept (Breiman et al. 1984; the error is that of the paired
difference), as far as one head can hold their average. The best has a kernel only if that wins in every fold
(`fold_rule`). The log loss of this choice is measured on each fold with a choice made on the other folds.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prm.config import FeatureSpec, Kernel, format_features
from prm.training.heads.fold_rule import lowest
from prm.training.heads.grid_search import HeadData, Search, Trial, scored
from prm.training.losses import bradley_terry, weighted_mean


@dataclass(frozen=True)
class Chosen:
    """The settings whose heads are averaged with equal weights.

    Args:
        trials: at least one; all with the same kernel, and with `rbf` the same features.
        margin: held-out margins of the comparisons, [n]; NaN where no fold holds one out.
        validation_nll, validation_accuracy: on comparisons that were held out from the choice, too.
        carry: empirical Bayes only: share of the users' covariance that carries over to held-out comparisons.
        temperature: empirical Bayes only: of the users' logits.
        scale_variance: `stack` only: variance of the factors by which users scale the population's logits.
        weights: `stack` only: weights of users' offsets (`prm.users.user_weight`).
    """

    trials: Sequence[Trial]
    margin: Tensor
    validation_nll: float
    validation_accuracy: float
    carry: float = 1.0
    temperature: float = 1.0
    scale_variance: float = 0.0
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def feature_spec(self) -> FeatureSpec:
        """Layers and poolings that any of the heads reads, each once."""
        return tuple(dict.fromkeys(setting for trial in self.trials for setting in trial.feature_spec))

    @property
    def kernel(self) -> Kernel:
        """The kernel of all trials."""
        return self.trials[0].kernel

    @property
    def l2(self) -> float:
        """One penalty on the shared part that shrinks about as much as the average of the trials."""
        return harmonic([trial.l2 for trial in self.trials])

    @property
    def user_l2(self) -> float:
        """The same for the penalty on user parameters."""
        return harmonic([trial.user_l2 for trial in self.trials])

    def describe(self) -> str:
        """Describe the settings, for the log."""
        features = f"layers and pooling {' + '.join(format_features(self.feature_spec))}, kernel {self.kernel}"
        averaged = f", the mean of {len(self.trials)} settings" if len(self.trials) > 1 else ""
        return f"{features}, l2 {self.l2:.4g}, user_l2 {self.user_l2:.4g}{averaged}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, features in the format of `reward.features`; `averaged` holds the single settings."""
        return {
            "features": format_features(self.feature_spec),
            "kernel": self.kernel,
            "l2": self.l2,
            "user_l2": self.user_l2,
            "validation_nll": self.validation_nll,
            "validation_accuracy": self.validation_accuracy,
            "carry": self.carry,
            "temperature": self.temperature,
            "scale_variance": self.scale_variance,
            "weights": [round(w, 4) for w in self.weights.tolist()],
            "averaged": [trial.to_dict() for trial in self.trials],
        }


def harmonic(penalties: Sequence[float]) -> float:
    """The harmonic mean, as heads scale with 1 / penalty; 0 if any penalty is 0."""
    return len(penalties) / sum(1.0 / p for p in penalties) if min(penalties) > 0.0 else 0.0


def choose(result: Search, data: HeadData, can_average: bool = True) -> Chosen:
    """Choose the settings to average, and measure the choice on each fold with a choice made on the others.

    Only the best is kept of models that cannot be averaged (`UserModel.CAN_AVERAGE`).
    """

    def held_out(others: Tensor, part: Tensor) -> Tensor:
        return result.margins[near_best(result, data, others, can_average)][:, part].mean(0)

    kept = near_best(result, data, (~result.margins[0].isnan()).nonzero()[:, 0], can_average)
    margin = held_out_margins(held_out, result.margins[0], data)
    return Chosen([result.trials[i] for i in kept], margin, *scored(margin, data))


def near_trials(result: Search, data: HeadData, index: Tensor) -> list[Trial]:
    """The settings to average, chosen on the comparisons at `index`."""
    return [result.trials[i] for i in near_best(result, data, index)]


def head_of(trial: Trial, index: int, can_average: bool) -> Hashable:
    """A key; settings with equal keys can be averaged into one head of the same kind."""
    if not can_average:
        return index
    return trial.kernel if trial.kernel == "linear" else (trial.kernel, trial.feature_spec)


def near_best(result: Search, data: HeadData, index: Tensor, can_average: bool = True) -> list[int]:
    """Indices of the settings within one standard error of the best (`best_of`) that can be averaged with it.

    Args:
        index: positions of the comparisons to choose by, with margins that are not NaN.
    """
    heads = [head_of(trial, i, can_average) for i, trial in enumerate(result.trials)]
    best = best_of(result.margins.__getitem__, [trial.kernel for trial in result.trials], data, index)
    weight = data.weight[index].double()
    loss = bradley_terry(result.margins[:, index].double(), data.p_chosen[index].double())
    excess = (loss - loss[best]) * weight
    error = excess.std(1, correction=0) * len(weight) ** 0.5
    near = (excess.sum(1) <= error).tolist()
    return [i for i, close in enumerate(near) if (close or i == best) and heads[i] == heads[best]]


def best_of(margin: Callable[[int], Tensor], kernels: Sequence[Kernel], data: HeadData, index: Tensor) -> int:
    """The setting with the lowest log loss on the comparisons at `index`; one with a kernel if that wins in every fold.

    Args:
        margin: margins of a setting, [n].
        kernels: of each setting.
    """
    losses = [log_loss(margin(i), data, index) for i in range(len(kernels))]
    return lowest(losses, [kernel == "rbf" for kernel in kernels], lambda i: losses_by_fold(margin(i), data, index))


def log_loss(margin: Tensor, data: HeadData, index: Tensor) -> float:
    """Log loss of the comparisons at `index` by margins [n], in nats per unit of weight.

    Rounded, so that settings that differ in rounding errors alone are equal.
    """
    return round(float(weighted_mean(bradley_terry(margin[index], data.p_chosen[index]), data.weight[index])), 6)


def losses_by_fold(margin: Tensor, data: HeadData, index: Tensor) -> list[float]:
    """`log_loss` of each fold among the comparisons at `index`."""
    known = torch.zeros(len(margin), dtype=torch.bool)
    known[index] = True
    return [log_loss(margin, data, part) for _, part in parts_of(data, known)]


def held_out_margins(held_out: Callable[[Tensor, Tensor], Tensor], margin: Tensor, data: HeadData) -> Tensor:
    """Margins [n] of each fold under the choice made on the other folds; NaN where no fold holds a comparison out.

    Args:
        held_out: maps positions of the other folds and of the fold to the fold's margins.
        margin: any margins that are NaN where no fold holds a comparison out, [n].
    """
    out = torch.full_like(margin, float("nan"))
    for others, part in parts_of(data, ~margin.isnan()):
        out[part] = held_out(others, part)
    return out


def parts_of(data: HeadData, known: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (positions of the other folds, positions of the fold) among the `known` comparisons, bool [n].

    A single fold is its own other: there are no other comparisons to choose by.
    """
    folds = data.fold if data.part is None else data.part
    parts = [k for k in range(int(folds.max()) + 1) if (known & (folds == k).all(1)).any()]
    for k in parts:
        part = (known & (folds == k).all(1)).nonzero()[:, 0]
        others = (known & (folds != k).all(1)).nonzero()[:, 0]
        yield (others if len(others) else part), part
