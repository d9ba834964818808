"""Offsets of all users from a fixed head, by penalised logistic regression.

User u prefers the first of two texts with P = sigmoid(m + <o_u + c_u e_0, z>): m is the population's logit, e_0 its
head, z the difference of the two texts, o_u the user's offset, and c_u says by how much they are more decided than
others. 0.5 user_l2 |o_u|^2 and 0.5 c_u^2 / scale_variance are added to the summed loss of the user's comparisons. Each
user's problem is convex and apart from the others', so that all are solved together, by Newton's method: in as many
coordinates as the user has comparisons, or as z has if these are fewer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 2**24  # maximum number of elements held at once
_STEPS, _HALVINGS = 50, 12
_TOLERANCE = 1e-3  # logits: Newton's error is then about the square of that


@dataclass(frozen=True)
class _Block:
    """b users with similar numbers of comparisons, padded: index [b, n]; margin, scaled, p_chosen, weight [b, n].

    The weight of padding is 0, which leaves it without any effect. `scaled` is <e_0, z>. `gram` [b, n, n] holds inner
    products of z for users with fewer comparisons than z has coordinates; the others have z [b, n, d].
    """

    users: Tensor
    index: Tensor
    margin: Tensor
    scaled: Tensor
    p_chosen: Tensor
    weight: Tensor
    gram: Tensor | None
    z: Tensor | None


class OffsetProblem:
    """The comparisons of all users, prepared for several penalties.

    Args:
        z: differences of the two texts' head inputs, [n, d].
        rows: row of the comparison's user, int64 [n].
        margin: m, [n].
        p_chosen, weight: label and weight, [n].
        head: e_0, [d].
        n_rows: number of rows.
    """

    def __init__(
        self, z: Tensor, rows: Tensor, margin: Tensor, p_chosen: Tensor, weight: Tensor, head: Tensor, n_rows: int
    ):
        self._z, self._rows, self._head, self._n_rows = z, rows, head, n_rows
        self._scaled = z @ head
        columns = torch.stack([margin, self._scaled, p_chosen, weight])
        self._blocks = list(_blocks(z, rows, columns, n_rows))

    @torch.no_grad()
    def fit(self, user_l2: float, scale_variance: float = 0.0) -> Tensor:
        """o_u + c_u e_0 of each row, [n_rows, d]; 0 for users without comparisons. 0 `scale_variance`: c_u is 0."""
        offset = self._z.new_zeros(self._n_rows, self._z.shape[1])
        factor, residual = self._z.new_zeros(self._n_rows), torch.zeros_like(self._scaled)
        for block in self._blocks:
            if block.gram is not None:
                kernel = block.gram / user_l2 + scale_variance * _outer(block.scaled)
                real = block.weight > 0.0
                residual[block.index[real]] = _newton_in_dual(block, kernel)[real]
                continue
            v = _newton_in_primal(block, user_l2, scale_variance)
            offset[block.users], factor[block.users] = v[:, :-1] / user_l2**0.5, scale_variance**0.5 * v[:, -1]
        offset.index_add_(0, self._rows, self._z * (residual / user_l2)[:, None])
        factor.index_add_(0, self._rows, scale_variance * residual * self._scaled)
        return offset + factor[:, None] * self._head


def _blocks(z: Tensor, rows: Tensor, columns: Tensor, n_rows: int) -> Iterator[_Block]:
    """Users share a block if it fits in `_BLOCK` elements, and if at most half of it is padding.

    `columns` [4, n]: margin, scaled, p_chosen, weight.
    """
    counts = torch.bincount(rows, minlength=n_rows)
    by_user, first = torch.argsort(rows, stable=True), counts.cumsum(0) - counts
    order = torch.argsort(counts, stable=True, descending=True)
    order = order[counts[order] > 0]
    while len(order):
        longest = int(counts[order[0]])
        size = max(1, _BLOCK // (longest * (min(longest, z.shape[1]) + z.shape[1])))
        users = order[: min(size, int((counts[order] > longest // 2).sum()))]
        order = order[len(users) :]
        slots = torch.arange(longest, device=rows.device)
        real = slots < counts[users, None]
        index = by_user[(first[users, None] + slots).clamp_max(len(rows) - 1)]
        differences = z[index]
        in_dual = longest <= z.shape[1]
        gram, wide = (differences @ differences.transpose(1, 2), None) if in_dual else (None, differences)
        margin, scaled, p_chosen, weight = columns[:, index] * real
        yield _Block(users, index, margin, scaled, p_chosen, weight, gram, wide)


def _outer(x: Tensor) -> Tensor:
    return x.unsqueeze(2) * x.unsqueeze(1)


def _newton_in_dual(block: _Block, kernel: Tensor) -> Tensor:
    """a [b, n], of which what users add to their logits is kernel a (Rasmussen and Williams 2006, algorithm 3.1).

    At the optimum a = weight (p_chosen - P), which float32 would not give to as many digits.
    """
    a = torch.zeros_like(block.margin)
    logit, value = torch.zeros_like(a), _loss(block, torch.zeros_like(a))
    for _ in range(_STEPS):
        residual, slope = _derivatives(block, logit)
        root = slope.sqrt()
        system = root.unsqueeze(2) * kernel * root.unsqueeze(1)
        system.diagonal(dim1=1, dim2=2).add_(1.0)
        b = slope * logit + residual
        inner = root * (kernel @ b.unsqueeze(2)).squeeze(2)
        step = b - root * torch.cholesky_solve(inner.unsqueeze(2), torch.linalg.cholesky(system)).squeeze(2) - a
        change = (kernel @ step.unsqueeze(2)).squeeze(2)
        size = torch.ones(len(a), 1).to(a)
        for _ in range(_HALVINGS):
            new_a, new_logit = a + size * step, logit + size * change
            new_value = _loss(block, new_logit) + 0.5 * (new_a * new_logit).sum(1)
            worse = new_value > value + 1e-5 * value.abs() + 1e-6  # beyond float32 rounding
            if not worse.any():
                break
            size = torch.where(worse[:, None], 0.5 * size, size)
        a, logit, value = new_a, new_logit, new_value
        if float((size * change).abs().max()) < _TOLERANCE:
            break
    return a


def _newton_in_primal(block: _Block, user_l2: float, scale_variance: float) -> Tensor:
    """v [b, d + 1]: offset and factor of each user, in units of their prior standard deviations."""
    assert block.z is not None
    z = torch.cat([block.z / user_l2**0.5, scale_variance**0.5 * block.scaled.unsqueeze(2)], 2)
    v = z.new_zeros(len(z), z.shape[2])
    logit, value = torch.zeros_like(block.margin), _loss(block, torch.zeros_like(block.margin))
    for _ in range(_STEPS):
        residual, slope = _derivatives(block, logit)
        system = z.transpose(1, 2) @ (slope.unsqueeze(2) * z)
        system.diagonal(dim1=1, dim2=2).add_(1.0)
        gradient = (z.transpose(1, 2) @ residual.unsqueeze(2)).squeeze(2) - v
        step = torch.cholesky_solve(gradient.unsqueeze(2), torch.linalg.cholesky(system)).squeeze(2)
        change = (z @ step.unsqueeze(2)).squeeze(2)
        size = torch.ones(len(v), 1).to(v)
        for _ in range(_HALVINGS):
            new_v, new_logit = v + size * step, logit + size * change
            new_value = _loss(block, new_logit) + 0.5 * new_v.square().sum(1)
            worse = new_value > value + 1e-5 * value.abs() + 1e-6
            if not worse.any():
                break
            size = torch.where(worse[:, None], 0.5 * size, size)
        v, logit, value = new_v, new_logit, new_value
        if float((size * change).abs().max()) < _TOLERANCE:
            break
    return v


def _loss(block: _Block, logit: Tensor) -> Tensor:
    """Summed weighted log loss of each user, [b], in nats."""
    x = block.margin + logit
    losses = -block.p_chosen * F.logsigmoid(x) - (1.0 - block.p_chosen) * F.logsigmoid(-x)
    return (block.weight * losses).sum(1)


def _derivatives(block: _Block, logit: Tensor) -> tuple[Tensor, Tensor]:
    """(minus the derivative of the loss by each logit, its second derivative), [b, n] each."""
    p = torch.sigmoid(block.margin + logit)
    return block.weight * (block.p_chosen - p), block.weight * p * (1.0 - p)
