"""The rule "this user picks the longer response so often", with a probability."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prm.data.baselines import LENGTH_WEIGHTS, rate_of_all, smoothed_rate
from prm.evaluation.compare.problem import take
from prm.training.heads.grid_search import HeadData, rounds_of, scored
from prm.training.heads.settings_choice import held_out_margins


@dataclass(frozen=True)
class LengthSign:
    """The weight of all users' rate in a user's own, chosen by cross-validation.

    A user picks the longer response with P = (their number of such picks + weight * rate of all) / (number + weight).
    """

    weight: float
    margin: Tensor
    validation_nll: float
    words: Tensor
    tried: int = len(LENGTH_WEIGHTS)

    @classmethod
    def choose(cls, data: HeadData, words: Tensor) -> "LengthSign":
        """Choose the weight, and evaluate the choice on each fold with a choice made on the others."""
        margins = torch.full((len(LENGTH_WEIGHTS), len(data.rows)), float("nan"))
        for train, part in rounds_of(data.fold):
            for i, weight in enumerate(LENGTH_WEIGHTS):
                margins[i, part] = LengthFit.of(take(data, train), words, weight).margins(take(data, part))

        def best(index: Tensor) -> int:
            return min(range(len(LENGTH_WEIGHTS)), key=lambda i: scored(margins[i, index], take(data, index))[0])

        margin = held_out_margins(lambda others, part: margins[best(others)][part], margins[0], data)
        known = (~margins[0].isnan()).nonzero()[:, 0]
        return cls(LENGTH_WEIGHTS[best(known)], margin, scored(margin, data)[0], words)

    def fit(self, data: HeadData) -> "LengthFit":
        return LengthFit.of(data, self.words, self.weight)

    def to_dict(self) -> dict[str, object]:
        return {"weight": self.weight}


@dataclass(frozen=True)
class LengthFit:
    """P(picks the longer response) of each row, [rows], and of all users together."""

    rate: Tensor
    overall: float
    words: Tensor
    weight: float

    @classmethod
    def of(cls, data: HeadData, words: Tensor, weight: float) -> "LengthFit":
        """The rates in these comparisons; those of equal length tell nothing."""
        longer = _longer(data, words)
        picks = torch.where(longer > 0, data.p_chosen, 1.0 - data.p_chosen)[longer != 0]
        overall = rate_of_all(float(picks.sum()), len(picks))
        return cls(torch.zeros(0), overall, words, weight).with_new_users(data)

    def margins(self, data: HeadData) -> Tensor:
        rate = self._enlarged(int(data.rows.max()) + 1)
        return (torch.logit(rate[data.rows], eps=1e-6) * _longer(data, self.words)).float()

    def with_new_users(self, data: HeadData) -> "LengthFit":
        longer = _longer(data, self.words)
        rows, rate = data.rows[longer != 0], self._enlarged(int(data.rows.max()) + 1).clone()
        picks = torch.where(longer > 0, data.p_chosen, 1.0 - data.p_chosen)[longer != 0]
        longer_picks = torch.zeros_like(rate).index_add_(0, rows, picks)
        counts, new = torch.bincount(rows, minlength=len(rate)), torch.unique(rows)
        smoothed = smoothed_rate(longer_picks.double().numpy(), counts.double().numpy(), self.overall, self.weight)
        rate[new] = torch.from_numpy(smoothed).to(rate)[new]
        return replace(self, rate=rate)

    def _enlarged(self, size: int) -> Tensor:
        """The rates with at least so many rows; unknown users have the rate of all."""
        missing = max(0, size - len(self.rate))
        return torch.cat([self.rate, torch.full((missing,), self.overall)])


def _longer(data: HeadData, words: Tensor) -> Tensor:
    """1 if the chosen response has more words, -1 if fewer, 0 if as many, [n]."""
    return torch.sign(words[data.chosen] - words[data.rejected])
