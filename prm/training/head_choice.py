"""Which settings are kept, and what that is worth: settings that cannot be told from the best are averaged.

One winner among many settings that do nearly as well is luck, and its likelihood on the comparisons that made it win
is too good. Kept are all settings within one standard error of the best (Breiman et al. 1984, of a paired difference),
as far as one head can hold their average; and a part of the comparisons is judged by what all others would keep.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prm.config import Kernel
from prm.layer_pooling import FeatureSpec, words
from prm.training.head_search import HeadData, Search, Trial, scored
from prm.training.losses import bradley_terry


@dataclass(frozen=True)
class Chosen:
    """The settings whose heads are averaged, all alike.

    Args:
        trials: at least one; of one kernel, and with `rbf` of one reading.
        margin: of the comparisons by which they are judged, [n]; NaN where no part holds one.
        validation_nll, validation_accuracy: held out from the choice, too.
        carry: of empirical-Bayes people: share of their variance that carries over to what is held out.
        temperature: of their logits.
    """

    trials: Sequence[Trial]
    margin: Tensor
    validation_nll: float
    validation_accuracy: float
    carry: float = 1.0
    temperature: float = 1.0

    @property
    def reading(self) -> FeatureSpec:
        """All that any of the heads reads, each once."""
        return tuple(dict.fromkeys(setting for trial in self.trials for setting in trial.reading))

    @property
    def kernel(self) -> Kernel:
        """The kernel of all of them."""
        return self.trials[0].kernel

    @property
    def l2(self) -> float:
        """The penalty on the common part that does about what all of them do together."""
        return harmonic([trial.l2 for trial in self.trials])

    @property
    def user_l2(self) -> float:
        """The same on people's own parts."""
        return harmonic([trial.user_l2 for trial in self.trials])

    def describe(self) -> str:
        """In words, for the log."""
        read = f"layers and pooling {' + '.join(words(self.reading))}, kernel {self.kernel}"
        many = f", the mean of {len(self.trials)} settings" if len(self.trials) > 1 else ""
        return f"{read}, l2 {self.l2:.4g}, user_l2 {self.user_l2:.4g}{many}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the reading as `reward.features` takes it; `averaged` holds the settings themselves."""
        return {
            "features": words(self.reading),
            "kernel": self.kernel,
            "l2": self.l2,
            "user_l2": self.user_l2,
            "validation_nll": self.validation_nll,
            "validation_accuracy": self.validation_accuracy,
            "carry": self.carry,
            "temperature": self.temperature,
            "averaged": [trial.to_dict() for trial in self.trials],
        }


def harmonic(penalties: Sequence[float]) -> float:
    """The harmonic mean: heads shrink by 1 / penalty; 0 where one of them does not shrink at all."""
    return len(penalties) / sum(1.0 / p for p in penalties) if min(penalties) > 0.0 else 0.0


def choose(found: Search, data: HeadData, clusters: bool = False) -> Chosen:
    """The settings to average, judged by what each part's others would keep.

    `clusters` have no average of as many centres: the best of them is kept alone.
    """
    heads = [head_of(trial, place, clusters) for place, trial in enumerate(found.trials)]

    def held_out(others: Tensor, part: Tensor) -> Tensor:
        return found.margins[near_best(found.margins, data, heads, others)][:, part].mean(0)

    kept = near_best(found.margins, data, heads, (~found.margins[0].isnan()).nonzero()[:, 0])
    margin = judge(held_out, found.margins[0], data)
    return Chosen([found.trials[place] for place in kept], margin, *scored(margin, data))


def near_trials(found: Search, data: HeadData, judged: Tensor) -> list[Trial]:
    """The settings to average by the comparisons at `judged`."""
    heads = [head_of(trial, place, False) for place, trial in enumerate(found.trials)]
    return [found.trials[place] for place in near_best(found.margins, data, heads, judged)]


def head_of(trial: Trial, place: int, clusters: bool) -> Hashable:
    """Settings of which this is equal have an average that is one head of the same kind."""
    if clusters:
        return place
    return trial.kernel if trial.kernel == "linear" else (trial.kernel, trial.reading)


def near_best(margins: Tensor, data: HeadData, heads: Sequence[Hashable], judged: Tensor) -> list[int]:
    """Places of the settings within one standard error of the best, and of one head with it.

    Args:
        margins: [s, n].
        heads: of each setting.
        judged: positions of the comparisons that they are chosen by, none of them NaN.
    """
    weight = data.weight[judged].double()
    loss = bradley_terry(margins[:, judged].double(), data.p_chosen[judged].double())
    best = int((loss @ weight).argmin())
    more = (loss - loss[best]) * weight
    error = more.std(1, correction=0) * len(weight) ** 0.5
    near = (more.sum(1) <= error).tolist()
    return [place for place, close in enumerate(near) if (close or place == best) and heads[place] == heads[best]]


def judge(held_out: Callable[[Tensor, Tensor], Tensor], margin: Tensor, data: HeadData) -> Tensor:
    """Margins [n] of each part by what its others choose; NaN where no part holds a comparison.

    Args:
        held_out: from positions of the others and of the part to the part's margins.
        margin: any that is NaN where no fold holds a comparison out, [n].
    """
    out = torch.full_like(margin, float("nan"))
    for others, part in parts_of(data, ~margin.isnan()):
        out[part] = held_out(others, part)
    return out


def parts_of(data: HeadData, known: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(positions of the others, positions of a part) of each part, of comparisons that are `known`, bool [n].

    Where there is but one part the others are itself: nothing is left to judge its choice by.
    """
    places = data.fold if data.part is None else data.part
    parts = [k for k in range(int(places.max()) + 1) if (known & (places == k).all(1)).any()]
    for k in parts:
        part = (known & (places == k).all(1)).nonzero()[:, 0]
        others = (known & (places != k).all(1)).nonzero()[:, 0]
        yield (others if len(others) else part), part
