"""Gaussian posteriors of users' offsets, given their comparisons."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prm.users.bayes.quadrature import COARSE, FINE, inflated, spread_of

BLOCK = 2**22  # maximum number of elements held at once
TOLERANCE = 1e-3  # converged below this change of a posterior mean, in standard deviations
_STEPS, _HALVINGS = 30, 8


@dataclass(frozen=True)
class Prior:
    """Prior of users' offsets: o ~ N(mean, covariance).

    Args:
        mean: [r], or one per user, [m, r].
        covariance: [r, r], around the mean.
        marginal: [r, r], around 0 and over all users: what the population's logits average over.
    """

    mean: Tensor
    covariance: Tensor
    marginal: Tensor


@dataclass(frozen=True)
class Posterior:
    """Posteriors N(mean, S - factor factor') of users' offsets, with S the prior's covariance, which all users share.

    Args:
        mean: [m, r].
        factor: reduction of S by the comparisons, [m, r, k], a column or less for each: 0 for users without any.
    """

    mean: Tensor
    factor: Tensor


@dataclass(frozen=True)
class PosteriorData:
    """All users' comparisons of texts in the subspace.

    Args:
        texts: z of each text, [t, r].
        chosen, rejected: indices into `texts`, int64 [n].
        people: the user of each comparison, int64 [n], from 0.
        p_chosen, weight: label and weight, [n].
        margin: g, the population's logit of chosen over rejected, [n].
    """

    texts: Tensor
    chosen: Tensor
    rejected: Tensor
    people: Tensor
    p_chosen: Tensor
    weight: Tensor
    margin: Tensor

    def __len__(self) -> int:
        return len(self.people)

    def differences(self, index: Tensor | slice = slice(None)) -> Tensor:
        """z of the chosen minus z of the rejected text, [n, r]."""
        return self.texts[self.chosen[index]] - self.texts[self.rejected[index]]


def conditional_margins(comparisons: PosteriorData, covariance: Tensor) -> Tensor:
    """c of each comparison, [n]: its logit for a user whose offset is known to be 0."""
    out = torch.empty_like(comparisons.margin)
    size = max(1, BLOCK // max(len(covariance), len(FINE[0])))
    for start in range(0, len(comparisons), size):
        rows = slice(start, start + size)
        z = comparisons.differences(rows)
        out[rows] = inflated(comparisons.margin[rows], ((z @ covariance) * z).sum(-1))
    return out


class PosteriorBlock(NamedTuple):
    """Posteriors of b users, in whitened coordinates t ~ N(0, I) that span their comparisons.

    Args:
        mean: of the offsets, [b, r].
        root: maps t to offsets, [b, r, q], q = min(comparisons, r): o = prior mean + root t + a part with its prior.
        unknown: posterior covariance of t, [b, q, q].
        compared: indices of the comparisons, int64 [b, n], and a mask of the real ones, bool [b, n].
        variance: of each comparison's logit, [b, n].
    """

    mean: Tensor
    root: Tensor
    unknown: Tensor
    compared: tuple[Tensor, Tensor]
    variance: Tensor

    @property
    def factor(self) -> Tensor:
        """Reduction of the prior's covariance by the comparisons, [b, r, q], as of `Posterior`."""
        share_known, directions = torch.linalg.eigh(torch.eye(self.unknown.shape[1]).to(self.unknown) - self.unknown)
        return self.root @ (directions * share_known.clamp_min(0.0).sqrt()[:, None])


def iter_posteriors(
    comparisons: PosteriorData,
    prior: Prior,
    n_users: int,
    start: tuple[Tensor, Tensor] | None = None,
    rounds: int = 8,
) -> Iterator[tuple[Tensor, PosteriorBlock]]:
    """Yield (users, their posteriors) for all users with comparisons, by Gaussian variational inference.

    A user with n comparisons costs n r min(n, r). Users without comparisons have the prior.

    Args:
        start: initial means of users [m, r] and variances of logits [n]; the prior's if not given.
        rounds: maximum number of alternating updates of means and covariances; a few converge.
    """
    conditional = replace(comparisons, margin=conditional_margins(comparisons, prior.marginal))
    scale = torch.linalg.cholesky(prior.covariance)
    prior_means = prior.mean.expand(n_users, -1)
    for users, index, real, block in _padded_blocks(conditional, n_users):
        block, root = _to_whitened_span(block, scale, prior_means[users])
        variance = block.z.square().sum(-1)
        t = variance.new_zeros(len(users), block.z.shape[2])
        if start is not None:
            v = torch.linalg.solve_triangular(scale, (start[0][users] - prior_means[users]).T, upper=False).T
            t = (torch.linalg.solve_triangular(scale, root, upper=False).transpose(1, 2) @ v.unsqueeze(-1))[..., 0]
            variance = start[1][index]
        for _ in range(rounds):
            previous_t = t
            t, curvature = _maximise_bound(block, t, variance)
            covariance = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
            variance = ((block.z @ covariance) * block.z).sum(-1)
            change = (t - previous_t).abs() / covariance.diagonal(dim1=1, dim2=2).sqrt()
            if float(change.max()) < TOLERANCE:
                break
        mean = prior_means[users] + (root @ t.unsqueeze(-1)).squeeze(-1)
        yield users, PosteriorBlock(mean, root, covariance, (index, real), variance)


def updated(
    posterior: Posterior, covariance: Tensor, z: Tensor, margin: Tensor, p_chosen: Tensor, weight: Tensor
) -> Posterior:
    """Update the posteriors of m users by one more comparison each, from mean and factor alone.

    A comparison depends on the offset only through its logit <z, o>: that is fitted, and the offset follows by linear
    regression on it. Earlier comparisons enter only through the given posterior. The factors get one column more.

    Args:
        covariance: S of the prior, [r, r].
        z: difference of the two texts, [m, r].
        margin: logit c at offset 0 (`conditional_margins`), [m].
        p_chosen, weight: label and weight, [m].
    """
    factor, column = posterior.factor, z.unsqueeze(-1)
    cov_with_logit = (z @ covariance) - (factor @ (factor.transpose(1, 2) @ column)).squeeze(-1)
    mean, variance = (z * posterior.mean).sum(-1), (z * cov_with_logit).sum(-1).clamp_min(1e-12)
    block = _Block(variance.sqrt()[:, None, None], (margin + mean)[:, None], p_chosen[:, None], weight[:, None])
    t, v = torch.zeros_like(mean)[:, None], torch.ones_like(variance)  # in units of the logit's standard deviation
    for _ in range(_STEPS):
        previous_t = t
        t, curvature = _maximise_bound(block, t, (v * variance)[:, None])
        v = 1.0 / curvature[:, 0, 0]
        if float(((t - previous_t).abs() / v.sqrt()[:, None]).max()) < 0.1 * TOLERANCE:
            break
    direction = cov_with_logit / variance.sqrt()[:, None]
    new_column = (1.0 - v).clamp_min(0.0).sqrt()[:, None] * direction
    return Posterior(posterior.mean + direction * t, torch.cat([factor, new_column.unsqueeze(-1)], 2))


def fewest_columns(factor: Tensor, moment: Tensor, budget: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The fewest columns that nearly reduce the variance of an average pair's logit as factors [m, r, k] do.

    A column f reduces it by f' M f, with M the mean of z z'. Columns are first rotated, which leaves factor factor' as
    it is, so that the first ones reduce it as much as so many columns can: those are kept. Variances are then slightly
    too large, never too small.

    Args:
        moment: M, [r, r].
        budget: what may be left out of each reduction, [m].
        most: maximum number of columns, whatever is left out.

    Returns (the kept columns of one user after another [t, r], their numbers [m], the reductions by all columns [m]).
    """
    reductions, directions = torch.linalg.eigh(factor.transpose(1, 2) @ (moment @ factor))
    reductions = reductions.clamp_min(0.0)
    kept = reductions.cumsum(1) > budget[:, None]  # the smallest come first
    kept[:, : max(0, factor.shape[2] - most)] = False
    columns = (factor @ directions).transpose(1, 2)
    return columns.flip(1)[kept.flip(1)], kept.sum(1), reductions.sum(1)


@dataclass(frozen=True)
class _Block:
    """Comparisons of b users, padded: z [b, n, r]; margin, p_chosen, weight [b, n], weight 0 on padding."""

    z: Tensor
    margin: Tensor
    p_chosen: Tensor
    weight: Tensor


def _padded_blocks(comparisons: PosteriorData, n_users: int) -> Iterator[tuple[Tensor, Tensor, Tensor, _Block]]:
    """Yield (users, indices [b, n], mask [b, n], the block) for all users with comparisons.

    Users with similar numbers of comparisons share a block; padding has weight 0.
    """
    counts = torch.bincount(comparisons.people, minlength=n_users)
    by_user = torch.argsort(comparisons.people, stable=True)
    first = counts.cumsum(0) - counts
    order = torch.argsort(counts, stable=True)
    order = order[counts[order] > 0]
    rank = comparisons.texts.shape[1]
    start = 0
    while start < len(order):
        size = len(order) - start  # the block's last user has most comparisons, and sets its width
        while size > 1 and size * (int(counts[order[start + size - 1]]) + rank) * max(rank, len(COARSE[0])) > BLOCK:
            size //= 2
        users = order[start : start + size]
        slots = torch.arange(int(counts[users].max()), device=users.device)
        real = slots < counts[users, None]
        index = by_user[(first[users, None] + slots).clamp_max(len(comparisons) - 1)]
        z = comparisons.differences(index.flatten()).view(*index.shape, rank)
        weight = comparisons.weight[index] * real
        yield users, index, real, _Block(z, comparisons.margin[index], comparisons.p_chosen[index], weight)
        start += size


def _to_whitened_span(block: _Block, scale: Tensor, prior_means: Tensor) -> tuple[_Block, Tensor]:
    """Return the block in q = min(n, r) coordinates t ~ N(0, I), and the map [b, r, q] from t to offsets.

    With S = scale scale', offsets are o = prior mean + scale v, v ~ N(0, I); n comparisons inform only about the part
    of v in the span of their n differences.
    """
    margin = block.margin + (block.z @ prior_means.unsqueeze(-1)).squeeze(-1)
    whitened = block.z @ scale
    if whitened.shape[1] >= whitened.shape[2]:
        return replace(block, z=whitened, margin=margin), scale.expand(len(margin), -1, -1)
    span, coordinates = torch.linalg.qr(whitened.transpose(1, 2))
    return replace(block, z=coordinates.transpose(1, 2), margin=margin), scale @ span


def _maximise_bound(block: _Block, start: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """(maximiser [b, q], curvature there [b, q, q]) of each user's concave bound, by damped Newton steps.

    The likelihood is averaged over `variance` [b, n], each logit's under the user's covariance.
    """
    offset, value = start, _bound(block, start, variance)
    for _ in range(_STEPS):
        gradient, curvature = _derivatives(block, offset, variance)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), torch.linalg.cholesky(curvature)).squeeze(-1)
        if float((gradient * step).sum(-1).max()) < 1e-8:
            break
        size = torch.ones_like(value)
        for _ in range(_HALVINGS):
            candidate = offset + size[:, None] * step
            new_value = _bound(block, candidate, variance)
            worse = new_value < value - 1e-4 * value.abs().clamp_min(1e-2)  # beyond float32 rounding
            if not worse.any():
                break
            size = torch.where(worse, 0.5 * size, size)
        offset = torch.where(worse[:, None], offset, candidate)
        value = torch.where(worse, value, new_value)
    return offset, _derivatives(block, offset, variance)[1]


def _bound(block: _Block, offset: Tensor, variance: Tensor) -> Tensor:
    """Expected log likelihood plus log prior, [b], without terms that depend on the covariance alone."""
    nodes, weights = (part.to(offset) for part in COARSE)
    logits = _logits(block, offset).unsqueeze(-1) + spread_of(variance, nodes)
    likelihood = block.p_chosen * (F.logsigmoid(logits) @ weights)
    likelihood = likelihood + (1.0 - block.p_chosen) * (F.logsigmoid(-logits) @ weights)
    return (block.weight * likelihood).sum(-1) - 0.5 * offset.square().sum(-1)


def _derivatives(block: _Block, offset: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient [b, q], minus the Hessian [b, q, q]) of the bound."""
    nodes, weights = (part.to(offset) for part in COARSE)
    p = torch.sigmoid(_logits(block, offset).unsqueeze(-1) + spread_of(variance, nodes))
    expected, slope = p @ weights, (p * (1.0 - p)) @ weights
    residual = (block.weight * (block.p_chosen - expected)).unsqueeze(1) @ block.z
    weighted = (block.weight * slope).unsqueeze(-1) * block.z
    curvature = weighted.transpose(1, 2) @ block.z
    curvature.diagonal(dim1=1, dim2=2).add_(1.0)
    return residual.squeeze(1) - offset, curvature


def _logits(block: _Block, offset: Tensor) -> Tensor:
    return block.margin + (block.z @ offset.unsqueeze(-1)).squeeze(-1)
