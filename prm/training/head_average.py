"""Several settings' heads as one: the mean of linear heads on readings is a linear head on all of them together."""

from collections import defaultdict

import torch
from torch import Tensor

from prm.config import TrainConfig
from prm.models.reward_model import RewardModel
from prm.training.head_choice import Chosen, harmonic
from prm.training.head_objective import Penalty, fit_head
from prm.training.head_search import HeadData, Trial, compact, new_model
from prm.users.models import UserModel


def fit_average(
    data: HeadData,
    chosen: Chosen,
    config: TrainConfig,
    n_rows: int,
    texts: Tensor,
    learns: Tensor | None = None,
    tolerance: float = 1e-8,
) -> UserModel:
    """The mean of the chosen settings' heads, each fitted on the comparisons at `learns`, on all where not given.

    `texts`, [t, d], is what heads see of the texts in `chosen.reading`.
    """
    out = new_model(config, n_rows, texts.shape[1])
    for _, table in _of_width(out):
        table.data.zero_()
    alike: dict[tuple[int, ...], list[Trial]] = defaultdict(list)
    for trial in chosen.trials:
        alike[tuple(_columns(chosen, trial, texts.shape[1]).tolist())].append(trial)
    index = torch.arange(len(data.rows)) if learns is None else learns
    for columns, trials in alike.items():
        states, axes = compact(texts[:, list(columns)])
        pairs, model = data.pairs(states).take(index), new_model(config, n_rows, states.shape[1])
        for trial in sorted(trials, key=lambda trial: (-trial.l2, -trial.user_l2)):
            fit_head(model, pairs, config.alpha, Penalty(trial.l2, trial.user_l2), tolerance)
            _add(out, model, axes, list(columns), len(chosen.trials))
    return out


@torch.no_grad()
def _add(out: UserModel, model: UserModel, axes: Tensor, columns: list[int], n: int) -> None:
    """An n-th of a model in fewer coordinates, at the columns that it reads."""
    whole = dict(out.named_parameters())
    wide = {name for name, _ in _of_width(model)}
    for name, table in model.named_parameters():
        if name in wide:
            whole[name][..., columns] += table @ axes.T / n
        else:
            whole[name].copy_(table)  # of clusters, which are never averaged


def _of_width(model: UserModel) -> list[tuple[str, torch.nn.Parameter]]:
    """The tables whose last axis is that of the states."""
    return [(name, table) for name, table in model.named_parameters() if name != "weights"]


def _columns(chosen: Chosen, trial: Trial, width: int) -> Tensor:
    """Where in what all of them read stands what this one reads."""
    if trial.reading == chosen.reading:
        return torch.arange(width)
    each = width // len(chosen.reading)
    return torch.cat([torch.arange(each) + each * chosen.reading.index(setting) for setting in trial.reading])


def scales(chosen: Chosen) -> Tensor:
    """By how much to stretch each of the states that are read, [k], so that one penalty on people does for all.

    In the mean of heads with penalties of their own a state counts as much for a person as 1 / penalty says, summed
    over the settings that read it. Whoever is learnt later is fitted on all states at once, with `chosen.user_l2`.
    """
    whole = harmonic([trial.user_l2 for trial in chosen.trials])
    if whole == 0.0:
        return torch.ones(len(chosen.reading))
    shares = [
        sum(whole / trial.user_l2 for trial in chosen.trials if setting in trial.reading) / len(chosen.trials)
        for setting in chosen.reading
    ]
    return torch.tensor(shares).sqrt()


@torch.no_grad()
def stretch(model: RewardModel, people: UserModel, by: Tensor) -> None:
    """Stretch the k states that the model reads by `by`, [k], and shrink the heads on them: nobody's rewards change."""
    if model.kernel is not None:  # it reads one state, or several as one
        return
    each = by.to(model.standard_scale.device).repeat_interleave(len(model.standard_scale) // len(by))
    model.standard_scale.div_(each)
    for _, table in _of_width(people):
        table.div_(each.to(table.device))
