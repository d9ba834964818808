"""Average the heads of several settings: the mean of linear heads is a linear head on all their features together."""

from collections import defaultdict

import torch
from torch import Tensor

from prm.config import TrainConfig
from prm.models.reward_model import RewardModel
from prm.training.heads.grid_search import HeadData, Trial, compact, new_model
from prm.training.heads.objective import Penalty, fit_head
from prm.training.heads.settings_choice import Chosen, harmonic
from prm.users.user_model import UserModel


def fit_average(
    data: HeadData,
    chosen: Chosen,
    config: TrainConfig,
    n_rows: int,
    texts: Tensor,
    train: Tensor | None = None,
    tolerance: float = 1e-8,
) -> UserModel:
    """The mean of the chosen settings' heads, each fitted on the comparisons at `train`, or on all if not given.

    `texts`, [t, d], holds the head inputs of the texts for all features of `chosen.feature_spec`.
    """
    out = new_model(config, n_rows, texts.shape[1])
    for table in _by_feature(out).values():
        table.data.zero_()
    by_columns: dict[tuple[int, ...], list[Trial]] = defaultdict(list)
    for trial in chosen.trials:
        by_columns[tuple(_columns(chosen, trial, texts.shape[1]).tolist())].append(trial)
    index = torch.arange(len(data.rows)) if train is None else train
    for columns, trials in by_columns.items():
        states, axes = compact(texts[:, list(columns)])
        pairs, model = data.pairs(states).take(index), new_model(config, n_rows, states.shape[1])
        for trial in sorted(trials, key=lambda trial: (-trial.l2, -trial.user_l2)):
            fit_head(model, pairs, config.alpha, Penalty(trial.l2, trial.user_l2), tolerance)
            _add(out, model, axes, list(columns), len(chosen.trials))
    return out


@torch.no_grad()
def _add(out: UserModel, model: UserModel, axes: Tensor, columns: list[int], n: int) -> None:
    """Add 1/n of a model in compact coordinates to the columns of `out` that it reads."""
    target = dict(out.named_parameters())
    wide = _by_feature(model)
    for name, table in model.named_parameters():
        if name in wide:
            target[name][..., columns] += table @ axes.T / n
        else:
            target[name].copy_(table)  # mixture weights of clusters, which are never averaged


def _by_feature(model: UserModel) -> dict[str, torch.nn.Parameter]:
    """The parameters whose last axis is the feature axis, by name."""
    return {name: model.get_parameter(name) for name in (*model.EMBEDDINGS, *model.OFFSETS)}


def _columns(chosen: Chosen, trial: Trial, width: int) -> Tensor:
    """Columns, in the features of all chosen trials together, that this trial reads."""
    if trial.feature_spec == chosen.feature_spec:
        return torch.arange(width)
    each = width // len(chosen.feature_spec)
    return torch.cat([torch.arange(each) + each * chosen.feature_spec.index(setting) for setting in trial.feature_spec])


def scales(chosen: Chosen) -> Tensor:
    """Factors for the k hidden states, [k], with which one penalty on user parameters serves all of them.

    In a mean of heads with different penalties, a hidden state weighs 1 / penalty in a user's part, summed over the
    settings that read it. Users added later are fitted on all hidden states at once, with `chosen.user_l2`.
    """
    user_l2 = harmonic([trial.user_l2 for trial in chosen.trials])
    if user_l2 == 0.0:
        return torch.ones(len(chosen.feature_spec))
    shares = [
        sum(user_l2 / trial.user_l2 for trial in chosen.trials if setting in trial.feature_spec) / len(chosen.trials)
        for setting in chosen.feature_spec
    ]
    return torch.tensor(shares).sqrt()


@torch.no_grad()
def stretch(model: RewardModel, user_model: UserModel, factors: Tensor) -> None:
    """Multiply the model's k hidden states by `factors` [k] and divide the heads on them: rewards do not change."""
    if model.kernel is not None:  # its features are not those of single hidden states
        return
    each = factors.to(model.standard_scale.device).repeat_interleave(len(model.standard_scale) // len(factors))
    model.standard_scale.div_(each)
    for table in _by_feature(user_model).values():
        table.div_(each.to(table.device))
