"""The objective of linear heads on cached features of a frozen backbone, minimised by L-BFGS.

The individual and uniform objectives are convex: there is no learning rate, order of rows or seed (only clusters start
from random values).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prm.training.losses import personalized_bradley_terry
from prm.users.kinds import Uniform
from prm.users.user_model import UserModel

_CHUNK = 65536  # pairs whose embeddings are gathered at once
_TABLE_PER_PAIR = 64  # up to so many rewards per pair, all users times all texts is cheaper than a head per pair
_MAX_STEPS = 500
_MAX_CACHED = 2**28  # 1 GiB of float32


@dataclass(frozen=True)
class PairFeatures:
    """Comparisons as input of a head.

    Args:
        texts: head inputs of the distinct texts, float32 [t, d] (`prm.models.reward_model.HeadInput`).
        chosen, rejected: positions in `texts`, int64 [n].
        rows: row of the comparison's user, int64 [n].
        p_chosen, weight: label and weight, float32 [n].
        base: reward that each text has before the head adds to it, float32 [t]; none if left out.
    """

    texts: Tensor
    chosen: Tensor
    rejected: Tensor
    rows: Tensor
    p_chosen: Tensor
    weight: Tensor
    base: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> "PairFeatures":
        """The pairs at `index`, over the same texts."""
        picked = {name: getattr(self, name)[index] for name in ("chosen", "rejected", "rows", "p_chosen", "weight")}
        return replace(self, **picked)

    def differences(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield, chunk by chunk, the chosen text's hidden state minus the rejected text's, [n, d]."""
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            yield part, self.texts[self.chosen[part]] - self.texts[self.rejected[part]]


@dataclass(frozen=True)
class Penalty:
    """Strengths in 0.5 l2 |e_0|^2 + 0.5 user_l2 sum_i |e_i - e_0|^2, added to the summed (not mean) loss.

    Some user models have other terms (`UserModel.shared_penalty`, `row_penalty`).
    """

    l2: float
    user_l2: float


Differences = Iterable[tuple[slice, Tensor]]


def margins(
    model: UserModel, pairs: PairFeatures, generic: bool = False, differences: Differences | None = None
) -> Tensor:
    """r(chosen) - r(rejected), [n], for the comparisons' users or for the generic user.

    `differences`: those of the pairs, if computed before.
    """
    if generic or isinstance(model, Uniform):
        rewards = pairs.texts @ model(torch.zeros(1, dtype=torch.long, device=pairs.rows.device))[0, 0]
        margin = rewards[pairs.chosen] - rewards[pairs.rejected]
    elif _table_is_small(model, pairs):
        rewards, first = _table(model, pairs.texts).flatten(), pairs.rows * len(pairs.texts)
        margin = rewards.index_select(0, first + pairs.chosen) - rewards.index_select(0, first + pairs.rejected)
    elif (loadings := model.loadings(pairs.rows)) is not None:
        weights, axes = loadings
        z = pairs.texts @ axes.T
        margin = ((z.index_select(0, pairs.chosen) - z.index_select(0, pairs.rejected)) * weights).sum(1)
    else:
        chunks = differences if differences is not None else pairs.differences()
        margin = torch.cat([(model(pairs.rows[part])[:, 0] * d).sum(-1) for part, d in chunks])
    return margin if pairs.base is None else margin + pairs.base[pairs.chosen] - pairs.base[pairs.rejected]


def _table(model: UserModel, texts: Tensor) -> Tensor:
    """Rewards of all texts for all users, [n_rows, t]."""
    rows = torch.arange(model.n_rows, device=texts.device)
    loadings = model.loadings(rows)
    if loadings is None:
        return model(rows)[:, 0] @ texts.T
    weights, axes = loadings
    return weights @ (axes @ texts.T)


def _table_is_small(model: UserModel, pairs: PairFeatures) -> bool:
    return model.n_rows * len(pairs.texts) <= _TABLE_PER_PAIR * len(pairs)


def objective(
    model: UserModel,
    pairs: PairFeatures,
    alpha: float,
    penalty: Penalty,
    differences: Differences | None = None,
) -> Tensor:
    """(summed weighted two-term loss + penalties) / summed weight, in nats per unit of weight (section F.2)."""
    one_term = isinstance(model, Uniform)
    all_rows = torch.arange(model.n_rows, device=pairs.rows.device)
    penalties = 0.5 * (penalty.l2 * model.shared_penalty() + penalty.user_l2 * model.row_penalty(all_rows).sum())
    user = margins(model, pairs, differences=differences) if alpha > 0.0 and not one_term else None
    generic = margins(model, pairs, generic=True) if alpha < 1.0 or one_term else None
    losses = personalized_bradley_terry(user, generic, pairs.p_chosen, alpha)
    return (losses @ pairs.weight + penalties) / pairs.weight.sum()


def fit_head(model: UserModel, pairs: PairFeatures, alpha: float, penalty: Penalty, tolerance: float = 1e-8) -> int:
    """Minimise the objective over the user model in place, until a step gains less than `tolerance` nats.

    Returns the number of steps. With alpha = 1, a generic user with parameters of its own is not trained: its row
    becomes the mean of the trained rows.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    cached = _cached_differences(model, pairs)
    steps = _minimise(parameters, lambda: objective(model, pairs, alpha, penalty, cached), tolerance)
    if alpha == 1.0 and model.row_zero_needs_training:
        model.set_row(0, torch.unique(pairs.rows[pairs.rows > 0]))
    return steps


def fit_rows(model: UserModel, pairs: PairFeatures, user_l2: float) -> int:
    """Fit the user parameters of the users in `pairs`, in place; all others and shared ones stay the same to the bit.

    The penalty 0.5 user_l2 |parameters - start|^2 (`UserModel.squared_distances`), added to the summed loss, pulls them
    to their current values; along a user's offset o from the generic user, user_l2 is replaced by user_l2 +
    `curvature_of_earlier`.
    Returns the number of steps.
    """
    tables = model.per_row()
    starts, generic = ([table[rows].detach().clone() for table in tables] for rows in (slice(None), slice(1)))
    cached, all_rows = _cached_differences(model, pairs), torch.arange(model.n_rows, device=pairs.rows.device)
    with torch.no_grad():
        length = model.squared_distances(all_rows, generic)  # |o|^2
        margin = margins(model, pairs, differences=cached)
        curvature = curvature_of_earlier(pairs, margin, margin - margins(model, pairs, generic=True), model.n_rows)
        along_offset = user_l2 * torch.where(length > 0.0, curvature / length, torch.zeros_like(length))

    def loss() -> Tensor:
        user = margins(model, pairs, differences=cached)
        moved = model.squared_distances(all_rows, starts)
        along = 0.5 * (model.squared_distances(all_rows, generic) - moved - length)  # <o, parameters - start>
        losses = personalized_bradley_terry(user, None, pairs.p_chosen, alpha=1.0)
        penalties = 0.5 * (user_l2 * moved.sum() + (along_offset * along.square()).sum())
        return (losses @ pairs.weight + penalties) / pairs.weight.sum()

    return _minimise(tables, loss, 1e-8)  # a row without a gradient gets a step of exactly 0


def curvature_of_earlier(pairs: PairFeatures, margin: Tensor, shift: Tensor, n_rows: int) -> Tensor:
    """Curvature of the loss of each user's earlier comparisons along the user's offset, [n_rows], in units of user_l2.

    The earlier comparisons are not at hand, but the offset o was their optimum: user_l2 o = sum (1 - p) z, with z the
    difference of the two hidden states and p the probability of what the user chose. Hence, with m = <o, z>,
    user_l2 |o|^2 = sum (1 - p) m, and the curvature along o is sum p (1 - p) m^2 / |o|^2: user_l2 times a mean of p m,
    however many comparisons there were. The mean is taken over the new comparisons, as if they were like the earlier
    ones; 0 for users without comparisons in `pairs`.

    Args:
        margin, shift: of the new comparisons, [n]: the logit, and the part m of it that the offset adds.
    """
    zero = torch.zeros(n_rows, device=margin.device)
    weight = zero.index_add(0, pairs.rows, pairs.weight)
    total = zero.index_add(0, pairs.rows, pairs.weight * margin.abs().sigmoid() * shift.abs())
    return torch.where(weight > 0.0, total / weight, zero)


def _cached_differences(model: UserModel, pairs: PairFeatures) -> list[tuple[slice, Tensor]] | None:
    """The pairs' differences, which are the same in every step; `None` if unused or too large to cache."""
    in_few_axes = model.loadings(pairs.rows[:1]) is not None
    used = not (isinstance(model, Uniform) or in_few_axes or _table_is_small(model, pairs))
    return list(pairs.differences()) if used and len(pairs) * pairs.texts.shape[1] <= _MAX_CACHED else None


def _minimise(parameters: list[nn.Parameter], loss: Callable[[], Tensor], tolerance: float) -> int:
    """L-BFGS over the parameters, in place; returns the number of steps."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_MAX_STEPS,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
        tolerance_change=tolerance,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    optimizer.zero_grad()
    return int(optimizer.state[parameters[0]].get("n_iter", 0))
