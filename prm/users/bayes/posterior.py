"""What is known of each person after their judgements."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prm.users.bayes.quadrature import COARSE, FINE, inflated, spread_of

BLOCK = 2**22  # numbers that are worked on at once
SETTLED = 1e-3  # deviations of a posterior mean that end the search
_STEPS, _HALVINGS = 30, 8


@dataclass(frozen=True)
class Prior:
    """What is known of people before they judge: o ~ N(mean, covariance).

    Args:
        mean: [r], or one for each person, [m, r], where something is known of them beforehand.
        covariance: [r, r], around the mean.
        marginal: [r, r], around 0 and over all people: that which the population's logits average over.
    """

    mean: Tensor
    covariance: Tensor
    marginal: Tensor


@dataclass(frozen=True)
class Posterior:
    """What is known of each person after their judgements: N(mean, S - factor factor'), with S the prior's covariance.

    Args:
        mean: [m, r].
        factor: what the judgements took away from S, [m, r, k]: nothing but 0 for whoever has not judged. Of more
            than k directions the k of which most is known are kept, which leaves people a little less known than
            they are, never more.
    """

    mean: Tensor
    factor: Tensor

    def variances(self, z: Tensor, people: Tensor, covariance: Tensor) -> Tensor:
        """Variance of <z, o> for each row of z [n, r] and its person, int64 [n], under S = `covariance`."""
        size = max(1, BLOCK // max(1, self.factor[0].numel()))  # of the factors that are gathered at once
        reductions = [
            (part.unsqueeze(1) @ self.factor[own]).square().sum((1, 2))
            for part, own in zip(z.split(size), people.split(size), strict=True)
        ]
        return (((z @ covariance) * z).sum(-1) - torch.cat(reductions)).clamp_min(0.0)


@dataclass(frozen=True)
class PosteriorData:
    """Everybody's comparisons over texts in the subspace.

    Args:
        texts: z of each text, [t, r].
        chosen, rejected: positions in `texts`, int64 [n].
        people: who judged, int64 [n], from 0.
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
        """z of the chosen less that of the rejected text, [n, r]."""
        return self.texts[self.chosen[index]] - self.texts[self.rejected[index]]


def conditional_margins(judgements: PosteriorData, covariance: Tensor) -> Tensor:
    """c of each comparison, [n]: the population's logits as they are for a person whose offset is known to be 0."""
    out = torch.empty_like(judgements.margin)
    size = max(1, BLOCK // max(len(covariance), len(FINE[0])))
    for start in range(0, len(judgements), size):
        part = slice(start, start + size)
        z = judgements.differences(part)
        out[part] = inflated(judgements.margin[part], ((z @ covariance) * z).sum(-1))
    return out


def fit_posterior(judgements: PosteriorData, prior: Prior, n_people: int, kept: int | None = None) -> Posterior:
    """Everyone's posterior; people without a judgement have the prior.

    At most `kept` directions of each, all of r if None. A person with n judgements costs n r min(n, r).
    """
    r = len(prior.covariance)
    mean = prior.mean.expand(n_people, -1).clone()
    factor = mean.new_zeros(n_people, r, r if kept is None else min(kept, r))
    for people, part in settled(judgements, prior, n_people):
        mean[people] = part.mean
        k = min(factor.shape[2], part.root.shape[2])
        known, directions = torch.linalg.eigh(torch.eye(part.unknown.shape[1]).to(mean) - part.unknown)
        strongest = directions[..., -k:] * known[:, None, -k:].clamp_min(0.0).sqrt()
        factor[people, :, :k] = part.root @ strongest
    return Posterior(mean, factor)


class Settled(NamedTuple):
    """The posteriors of some people, in coordinates t ~ N(0, I) a priori that all that they judged lies in.

    Args:
        mean: of their offsets, [b, r].
        root: from t to offsets, [b, r, q], q = min(judgements, r): o = prior mean + root t + what nothing is known of.
        unknown: covariance of t, [b, q, q].
        judged: places of their comparisons, int64 [b, n], and which of them are real, bool [b, n].
        variance: of each comparison's logit, [b, n].
    """

    mean: Tensor
    root: Tensor
    unknown: Tensor
    judged: tuple[Tensor, Tensor]
    variance: Tensor


def settled(
    judgements: PosteriorData,
    prior: Prior,
    n_people: int,
    start: tuple[Tensor, Tensor] | None = None,
    rounds: int = 8,
) -> Iterator[tuple[Tensor, Settled]]:
    """(people, their posteriors) for everybody who has judged, by variational inference with a Gaussian.

    Args:
        start: means of people [m, r] and variances of logits [n] to begin with; the prior's if not given.
        rounds: of means given covariances and covariances given means; a few settle it.
    """
    judged = replace(judgements, margin=conditional_margins(judgements, prior.marginal))
    scale = torch.linalg.cholesky(prior.covariance)
    expected = prior.mean.expand(n_people, -1)
    for people, places, real, block in _blocks(judged, n_people):
        block, root = _reduced(block, scale, expected[people])
        variance = block.z.square().sum(-1)
        t = variance.new_zeros(len(people), block.z.shape[2])
        if start is not None:
            away = torch.linalg.solve_triangular(scale, (start[0][people] - expected[people]).T, upper=False).T
            t = (torch.linalg.solve_triangular(scale, root, upper=False).transpose(1, 2) @ away.unsqueeze(-1))[..., 0]
            variance = start[1][places]
        for _ in range(rounds):
            before = t
            t, curvature = _climb(block, t, variance)
            unknown = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
            variance = ((block.z @ unknown) * block.z).sum(-1)
            away = (t - before).abs() / unknown.diagonal(dim1=1, dim2=2).sqrt()
            if float(away.max()) < SETTLED:
                break
        mean = expected[people] + (root @ t.unsqueeze(-1)).squeeze(-1)
        yield people, Settled(mean, root, unknown, (places, real), variance)


def updated(
    posterior: Posterior, covariance: Tensor, z: Tensor, margin: Tensor, p_chosen: Tensor, weight: Tensor
) -> Posterior:
    """The posteriors of m people after one more judgement each, from mean and factor alone.

    A judgement tells of nothing but its own logit <z, o>, so only that is fitted, and what hangs together with it
    follows. The earlier judgements are not looked at again: they stay the Gaussian that they were.

    Args:
        covariance: S of the prior, [r, r].
        z: difference of the two texts, [m, r].
        margin: logit c at offset 0 (`conditional_margins`), [m].
        p_chosen, weight: label and weight, [m].
    """
    factor, column = posterior.factor, z.unsqueeze(-1)
    reach = (z @ covariance) - (factor @ (factor.transpose(1, 2) @ column)).squeeze(-1)  # covariance with the logit
    mean, variance = (z * posterior.mean).sum(-1), (z * reach).sum(-1).clamp_min(1e-12)
    one = _Block(variance.sqrt()[:, None, None], (margin + mean)[:, None], p_chosen[:, None], weight[:, None])
    t, v = torch.zeros_like(mean)[:, None], torch.ones_like(variance)  # in units of the logit's deviation
    for _ in range(_STEPS):
        before = t
        t, curvature = _climb(one, t, (v * variance)[:, None])
        v = 1.0 / curvature[:, 0, 0]
        if float(((t - before).abs() / v.sqrt()[:, None]).max()) < 0.1 * SETTLED:
            break
    unit = reach / variance.sqrt()[:, None]
    more = (1.0 - v).clamp_min(0.0).sqrt()[:, None] * unit
    factor = strongest(torch.cat([factor, more.unsqueeze(-1)], 2), covariance, factor.shape[2])
    return Posterior(posterior.mean + unit * t, factor)


def strongest(factor: Tensor, covariance: Tensor, kept: int) -> Tensor:
    """Fewer columns, [m, r, kept], of a factor [m, r, k], k > kept: the directions of which most is known."""
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), factor, upper=False)
    _, turn = torch.linalg.eigh(whitened.transpose(1, 2) @ whitened)
    return factor @ turn[..., -kept:]


@dataclass(frozen=True)
class _Block:
    """Comparisons of some people, padded: z [b, n, r]; margin, p_chosen, weight [b, n], weight 0 on padding."""

    z: Tensor
    margin: Tensor
    p_chosen: Tensor
    weight: Tensor


def _blocks(judgements: PosteriorData, n_people: int) -> Iterator[tuple[Tensor, Tensor, Tensor, _Block]]:
    """(people, places [b, n] of their comparisons, which are real [b, n], the comparisons) for everybody who has any.

    People with about as many stand together; what is not real has weight 0.
    """
    counts = torch.bincount(judgements.people, minlength=n_people)
    by_person = torch.argsort(judgements.people, stable=True)
    first = counts.cumsum(0) - counts
    order = torch.argsort(counts, stable=True)
    order = order[counts[order] > 0]
    r = judgements.texts.shape[1]
    done = 0
    while done < len(order):
        size = len(order) - done  # the block's last person has most comparisons, and sets its width
        while size > 1 and size * (int(counts[order[done + size - 1]]) + r) * max(r, len(COARSE[0])) > BLOCK:
            size //= 2
        people = order[done : done + size]
        slots = torch.arange(int(counts[people].max()), device=people.device)
        real = slots < counts[people, None]
        places = by_person[(first[people, None] + slots).clamp_max(len(judgements) - 1)]
        z = judgements.differences(places.flatten()).view(*places.shape, r)
        weight = judgements.weight[places] * real
        yield people, places, real, _Block(z, judgements.margin[places], judgements.p_chosen[places], weight)
        done += size


def _reduced(block: _Block, scale: Tensor, expected: Tensor) -> tuple[_Block, Tensor]:
    """The block in coordinates t ~ N(0, I), of which it needs min(n, r), and the root [b, r, q] from t to offsets.

    With S = scale scale', offsets are o = expected + scale v, v ~ N(0, I); n judgements tell of v only what lies in
    the span of their n differences.
    """
    margin = block.margin + (block.z @ expected.unsqueeze(-1)).squeeze(-1)
    whitened = block.z @ scale
    if whitened.shape[1] >= whitened.shape[2]:
        return replace(block, z=whitened, margin=margin), scale.expand(len(margin), -1, -1)
    span, coordinates = torch.linalg.qr(whitened.transpose(1, 2))
    return replace(block, z=coordinates.transpose(1, 2), margin=margin), scale @ span


def _climb(block: _Block, start: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """(best mean [b, q], curvature there [b, q, q]) of each person's bound, which is concave, by damped Newton steps.

    `variance` [b, n] is that of each logit under the person's covariance, over which the likelihood is averaged.
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
            reached = _bound(block, candidate, variance)
            worse = reached < value - 1e-4 * value.abs().clamp_min(1e-2)  # beyond what float32 rounds away
            if not worse.any():
                break
            size = torch.where(worse, 0.5 * size, size)
        offset = torch.where(worse[:, None], offset, candidate)
        value = torch.where(worse, value, reached)
    return offset, _derivatives(block, offset, variance)[1]


def _bound(block: _Block, offset: Tensor, variance: Tensor) -> Tensor:
    """Expected log likelihood less the pull of the prior, [b]; what depends on the covariance alone is left out."""
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
    pull = (block.weight * (block.p_chosen - expected)).unsqueeze(1) @ block.z
    weighted = (block.weight * slope).unsqueeze(-1) * block.z
    curvature = weighted.transpose(1, 2) @ block.z
    curvature.diagonal(dim1=1, dim2=2).add_(1.0)
    return pull.squeeze(1) - offset, curvature


def _logits(block: _Block, offset: Tensor) -> Tensor:
    return block.margin + (block.z @ offset.unsqueeze(-1)).squeeze(-1)
