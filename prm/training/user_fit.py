"""A person's own numbers, fitted to their judgements while nobody else's, and nothing shared, moves."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypedDict

import torch
from peft import PeftModel
from torch import Tensor

from prm.checkpoint.checkpoint import Checkpoint
from prm.checks import NonNegative
from prm.config import OptimConfig
from prm.data.comparison import Comparison
from prm.data.encoding import Batch, TextEncoder, pad
from prm.errors import PrmError
from prm.io.progress import progress
from prm.io.run_files import read_json, read_run
from prm.models.backbone_state import switched
from prm.models.reward_model import RewardModel
from prm.training.bayes_fit import continue_bayes, finish_bayes
from prm.training.head_objective import PairFeatures, fit_rows
from prm.training.losses import bradley_terry
from prm.users.models import Bayes, UserModel

_ROWS_AT_ONCE = 65536  # of a table of people
_LEAST_STEPS = 40  # of a new person's prompt, however few judgements there are


class _Best(TypedDict):
    user_l2: NonNegative


class _Personal(TypedDict):
    best: _Best


class _Searched(TypedDict):
    personal: _Personal


def read_search(run: Path) -> dict[str, Any]:
    """`metrics.json` of a run whose search chose a penalty, `personal.best.user_l2`.

    Raises `CheckpointError` where it is missing or damaged.
    """
    found: dict[str, Any] = read_json(run / "metrics.json", _Searched)
    return found


def fit_heads(people: UserModel, pairs: PairFeatures, fresh: Tensor, user_l2: float) -> int:
    """Linear heads of the people in `pairs`, in place, from where they are; returns the number of steps.

    Args:
        fresh: bool [n_rows]; with empirical Bayes the posterior of these people is made of all of `pairs` at once, that
            of the others takes in one judgement after the other.
        user_l2: what holds a person where they start: 0.5 user_l2 |own - start|^2. Empirical Bayes knows its own.
    """
    if not isinstance(people, Bayes):
        for table in people.per_row():
            table.requires_grad_(True)
        return fit_rows(people, pairs, user_l2)
    new = fresh[pairs.rows]
    finish_bayes(people, pairs.take(new.nonzero().squeeze(1)))
    return continue_bayes(people, pairs.take((~new).nonzero().squeeze(1)))


def fit_prompts(
    model: RewardModel,
    people: UserModel,
    encoder: TextEncoder,
    comparisons: Sequence[Comparison],
    judges: Sequence[int],
    optim: OptimConfig,
    user_l2: float,
    seed: int = 0,
) -> int:
    """Soft prompts of people, by gradient steps on them alone, in place.

    Args:
        judges: row of each comparison's judge in `people`.
        optim: its `user_lr`, schedule and batches are taken.
        user_l2: what holds a person where they start, as in `fit_heads`.

    Returns the number of steps: one pass over the judgements, but never fewer than 40.
    """
    sequences = [
        [encoder.encode(c.prompt, y, row, c.user_text) for y in (c.chosen, c.rejected)]
        for c, row in zip(comparisons, judges, strict=True)
    ]
    device = people.per_row()[0].device
    p_chosen, weight = torch.tensor([[c.p_chosen, c.weight] for c in comparisons], device=device).T
    order = _order(len(comparisons), optim.batch_size, seed)

    def losses_of(chosen: Tensor) -> Iterator[Tensor]:
        for micro in chosen.split(optim.micro_batch_size):
            batch = pad([sequences[i][side] for side in (0, 1) for i in micro.tolist()])
            with switched(model.backbone, people=people):  # others read between two steps, with the model's own
                first, second = model.soft_reward(Batch(*(field.to(device) for field in batch))).chunk(2)
            losses = bradley_terry(first - second, p_chosen[micro])
            yield losses @ weight[micro] / weight[chosen].sum()

    _descend(people.per_row(), order, losses_of, optim, user_l2 / float(weight.sum()))
    return len(order)


def _order(n: int, batch_size: int, seed: int) -> Tensor:
    """Which of n judgements each step takes, int64 [steps, size]: passes in seeded orders, one behind the other."""
    size = min(n, batch_size)
    steps = max(_LEAST_STEPS, -(-n // size))
    draw = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(n, generator=draw) for _ in range(-(-steps * size // n))]
    return torch.cat(passes)[: steps * size].view(steps, size)


def _descend(
    tables: Sequence[Tensor],
    order: Tensor,
    losses_of: Callable[[Tensor], Iterator[Tensor]],
    optim: OptimConfig,
    penalty: float,
) -> None:
    """A step on the tables, in place, for each row of `order`.

    Args:
        losses_of: parts of the loss of a step's judgements, which add up to it.
        penalty: 0.5 penalty |own - start|^2 is added.
    """
    from prm.training.trainer_base import (  # brings in transformers' trainer: seconds that no linear head needs
        RowAdamW,
        rate,
    )

    tables = [table.requires_grad_(True) for table in tables]  # a copy, not the model's own
    starts = [table.detach().clone() for table in tables]
    groups = [{"params": tables, "lr": optim.user_lr, "rowwise": True, "max_norm": optim.max_grad_norm}]
    optimizer = RowAdamW(groups, betas=(0.9, 0.98))
    for step, chosen in enumerate(progress(order, desc="learning people", unit="step")):
        for loss in losses_of(chosen):
            loss.backward()
        moved = sum((table - start).square().sum() for table, start in zip(tables, starts, strict=True))
        torch.as_tensor(0.5 * penalty * moved).backward()
        optimizer.param_groups[0]["lr"] = optim.user_lr * rate(step, len(order), optim)
        optimizer.step()
        optimizer.zero_grad()


def penalty_of(checkpoint: Checkpoint[Any]) -> float:
    """What holds a person where they start: the penalty that the run's search chose, else one as wide as people are.

    That is 1 / the variance of people's own numbers around the unknown user's. Raises `PrmError` where nobody's
    numbers were trained.
    """
    model, folder = checkpoint.model, checkpoint.folder
    trained = checkpoint.tuned or isinstance(model.backbone, PeftModel)
    searched = isinstance(model, RewardModel) and model.is_linear and not trained  # other runs chose no penalty
    if folder is not None and searched and os.path.lexists(folder / "metrics.json"):
        return float(read_search(folder)["personal"]["best"]["user_l2"])
    users = checkpoint.model.user_model
    if isinstance(users, Bayes):
        return 0.0
    total, count = 0.0, 0
    for table in users.per_row():
        for rows in table.detach()[1:].split(_ROWS_AT_ONCE):  # there may be a million, mapped from a file
            own = (rows - table[0]).flatten(1)
            trained = own[own.abs().amax(1) > 0]  # rows of those who were forgotten are the unknown user's
            total, count = total + float(trained.double().square().sum()), count + trained.numel()
    if not count:
        raise PrmError("the run has learnt nobody's own numbers: there is nothing to tell how far people may be apart")
    return count / total


def rates_of(checkpoint: Checkpoint[Any]) -> OptimConfig:
    """How the run was trained step by step; the defaults where it lies in no folder."""
    found = read_run(checkpoint.folder, "config.optim") if checkpoint.folder is not None else {}
    stored = found["config"]["optim"] if found else {}
    return OptimConfig(
        **{f.name: stored[f.name] for f in fields(OptimConfig) if f.name in stored}
    )  # older: others, too
