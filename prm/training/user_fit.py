"""Fit the user parameters of some users to their comparisons; other users and shared weights stay the same."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from peft import PeftModel
from torch import Tensor

from prm.checkpoint.checkpoint import Checkpoint
from prm.checks import NonNegative, built, kinds_of
from prm.config import OptimConfig
from prm.data.comparison import Comparison
from prm.data.encoding import Batch, TextEncoder, pad
from prm.errors import PrmError
from prm.io.progress import progress
from prm.io.run_files import group_in, read_group, read_json
from prm.models.backbone_state import switched
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel
from prm.training.heads.bayes_fit import continue_bayes, finish_bayes
from prm.training.heads.objective import PairFeatures, fit_rows
from prm.training.heads.stack_fit import extend_stack
from prm.training.losses import bradley_terry
from prm.training.trainers.optimizer import RowAdamW, rate
from prm.users.bayes_model import Bayes
from prm.users.stack_model import Stack
from prm.users.user_model import UserModel

_ROWS_AT_ONCE = 65536  # of a user table
_MIN_STEPS = 40  # of a soft prompt, however few comparisons there are


class _Best(TypedDict):
    user_l2: NonNegative


class _Personal(TypedDict):
    best: _Best


class SearchMetrics(TypedDict):
    """What is read of the `metrics.json` of a search; it holds more."""

    personal: _Personal


def read_search(run: Path) -> SearchMetrics:
    """`metrics.json` of a run whose search chose a penalty, `personal.best.user_l2`.

    Raises `CheckpointError` if it is missing or damaged.
    """
    return read_json(run / "metrics.json", SearchMetrics)


def fit_heads(user_model: UserModel, pairs: PairFeatures, is_new: Tensor, user_l2: float) -> int:
    """Fit the linear heads of the users in `pairs`, in place, from their current values; returns the number of steps.

    Args:
        is_new: bool [n_rows]. With empirical Bayes the posterior of new users is fitted to all of `pairs` at once; that
            of other users is updated by one comparison after the other.
        user_l2: penalty 0.5 user_l2 |parameters - start|^2 (`UserModel.squared_distances`). Empirical Bayes and stacks
            keep their own.
    """
    if isinstance(user_model, Stack):
        return extend_stack(user_model, pairs)
    if not isinstance(user_model, Bayes):
        for table in user_model.per_row():
            table.requires_grad_(True)
        return fit_rows(user_model, pairs, user_l2)
    new = is_new[pairs.rows]
    finish_bayes(user_model, pairs.take(new.nonzero().squeeze(1)))
    return continue_bayes(user_model, pairs.take((~new).nonzero().squeeze(1)))


def fit_prompts(
    model: RewardModel,
    user_model: UserModel,
    encoder: TextEncoder,
    comparisons: Sequence[Comparison],
    rows: Sequence[int],
    optim: OptimConfig,
    user_l2: float,
    seed: int = 0,
) -> int:
    """Train users' soft prompts by gradient steps, in place; nothing else is trained.

    Args:
        rows: row of each comparison's user in `user_model`.
        optim: gives `user_lr`, schedule and batch sizes.
        user_l2: penalty on the distance from the start, as in `fit_heads`.

    Returns the number of steps: one pass over the comparisons, but at least 40.
    """
    sequences = [
        [encoder.encode(c.prompt, y, row, c.user_text) for y in (c.chosen, c.rejected)]
        for c, row in zip(comparisons, rows, strict=True)
    ]
    device = user_model.per_row()[0].device
    p_chosen, weight = torch.tensor([[c.p_chosen, c.weight] for c in comparisons], device=device).T
    order = _order(len(comparisons), optim.batch_size, seed)

    def losses_of(index: Tensor) -> Iterator[Tensor]:
        for micro in index.split(optim.micro_batch_size):
            batch = pad([sequences[i][side] for side in (0, 1) for i in micro.tolist()])
            # for this pass only: between steps, other threads read with the model's users
            with switched(model.backbone, user_model=user_model, evaluating=True):
                first, second = model.soft_reward(Batch(*(field.to(device) for field in batch))).chunk(2)
            losses = bradley_terry(first - second, p_chosen[micro])
            yield losses @ weight[micro] / weight[index].sum()

    _descend(user_model, order, losses_of, optim, user_l2 / float(weight.sum()))
    return len(order)


def _order(n: int, batch_size: int, seed: int) -> Tensor:
    """Indices of the comparisons of each step, int64 [steps, size]: consecutive passes in seeded orders."""
    size = min(n, batch_size)
    steps = max(_MIN_STEPS, -(-n // size))
    draw = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(n, generator=draw) for _ in range(-(-steps * size // n))]
    return torch.cat(passes)[: steps * size].view(steps, size)


def _descend(
    user_model: UserModel,
    order: Tensor,
    losses_of: Callable[[Tensor], Iterator[Tensor]],
    optim: OptimConfig,
    penalty: float,
) -> None:
    """Take an optimiser step on the rows of a copy of the user model, in place, for each row of `order`.

    Args:
        losses_of: yields the terms of the loss on a step's comparisons, which add up to it.
        penalty: 0.5 penalty |rows - start|^2 is added.
    """
    tables = [table.requires_grad_(True) for table in user_model.per_row()]
    starts, all_rows = (
        [table.detach().clone() for table in tables],
        torch.arange(user_model.n_rows, device=tables[0].device),
    )
    groups = [{"params": tables, "lr": optim.user_lr, "rowwise": True, "max_norm": optim.max_grad_norm}]
    optimizer = RowAdamW(groups, betas=(0.9, 0.98))
    for step, index in enumerate(progress(order, desc="fitting users", unit="step")):
        for loss in losses_of(index):
            loss.backward()
        (0.5 * penalty * user_model.squared_distances(all_rows, starts).sum()).backward()
        optimizer.param_groups[0]["lr"] = optim.user_lr * rate(step, len(order), optim)
        optimizer.step()
        optimizer.zero_grad()


def penalty_of(checkpoint: Checkpoint[RewardModel] | Checkpoint[Policy]) -> float:
    """The penalty on user parameters: the one that the run's search chose, else 1 / their variance.

    The variance is that of a trained user's parameters around the generic user's (`UserModel.squared_distances`).
    Raises `PrmError` if no user parameters were trained.
    """
    model, folder = checkpoint.model, checkpoint.folder
    backbone_trained = checkpoint.tuned or isinstance(model.backbone, PeftModel)
    searched = isinstance(model, RewardModel) and model.is_linear and not backbone_trained  # other runs have no search
    if folder is not None and searched and _has_search(folder):
        return float(read_search(folder)["personal"]["best"]["user_l2"])
    users = checkpoint.model.user_model
    if isinstance(users, Bayes | Stack):
        return 0.0
    total, trained, generic = 0.0, 0, [table[:1] for table in users.per_row()]
    every = torch.arange(1, users.n_rows, device=next(users.parameters()).device)
    with torch.no_grad():
        for rows in every.split(_ROWS_AT_ONCE):  # a million rows may be mapped from a file
            distances = users.squared_distances(rows, generic)
            # rows of forgotten users equal the generic user's
            total, trained = total + float(distances.double().sum()), trained + int((distances > 0).sum())
    if not trained:
        raise PrmError("the run has no trained user parameters, from which to estimate the penalty for new users")
    return trained * sum(row.numel() for row in generic) / total


def _has_search(folder: Path) -> bool:
    """Whether the run has the results of a search; the heads of `PersonalizedRewardTrainer` come from steps."""
    path = folder / "metrics.json"
    return os.path.lexists(path) and "history" not in read_json(path, dict[str, object])


def rates_of(checkpoint: Checkpoint[RewardModel]) -> OptimConfig:
    """The `optim` settings of the run; the defaults if it has none."""
    folder, stored = checkpoint.folder, dict[str, object]()
    if folder is not None:
        stored = read_group(folder, "optim")
    elif (made := checkpoint.record.get("run.json")) is not None:
        stored = group_in(made, "optim")
    known = kinds_of(OptimConfig)  # runs of older versions have other settings, too
    return built(OptimConfig, {name: value for name, value in stored.items() if name in known}, "optim")
