"""What is known of each person after their judgements."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from prm.bayes.integrals import COARSE, FINE, inflated, integrated, spread_of

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
    """What is known of each person after their judgements: mean [m, r] and covariance [m, r, r]."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Judgements:
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


def conditional_margins(judgements: Judgements, covariance: Tensor) -> Tensor:
    """c of each comparison, [n]: the population's logits as they are for a person whose offset is known to be 0."""
    out = torch.empty_like(judgements.margin)
    size = max(1, BLOCK // max(len(covariance), len(FINE[0])))
    for start in range(0, len(judgements), size):
        part = slice(start, start + size)
        z = judgements.differences(part)
        out[part] = inflated(judgements.margin[part], ((z @ covariance) * z).sum(-1))
    return out


def fit_posterior(
    judgements: Judgements, prior: Prior, n_people: int, start: Posterior | None = None, rounds: int = 8
) -> Posterior:
    """Everyone's posterior; people without a judgement have the prior.

    Args:
        start: where to begin, at the prior if not given.
        rounds: of means given covariances and covariances given means; a few settle it.
    """
    judged = replace(judgements, margin=conditional_margins(judgements, prior.marginal))
    precision = torch.linalg.inv(prior.covariance)
    expected = prior.mean.expand(n_people, -1)
    mean, covariance = expected.clone(), prior.covariance.expand(n_people, -1, -1).clone()
    for people, block in _blocks(judged, n_people):
        m, c = (mean[people], covariance[people]) if start is None else (start.mean[people], start.covariance[people])
        for _ in range(rounds):
            before = m
            variance = ((block.z @ c) * block.z).sum(-1)
            m, curvature = _climb(block, m, variance, expected[people], precision)
            c = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
            away = (m - before).abs() / c.diagonal(dim1=1, dim2=2).sqrt()
            if float(away.max()) < SETTLED:
                break
        mean[people], covariance[people] = m, c
    return Posterior(mean, covariance)


def fit_modes(judgements: Judgements, prior: Prior, n_people: int) -> Tensor:
    """Everyone's most likely offset, [n_people, r], with `margin` as logits at offset 0: nothing is integrated.

    With z the features and S = s^2 I, this is the individual model's offset under the penalty 1 / s^2.
    """
    expected, precision = prior.mean.expand(n_people, -1), torch.linalg.inv(prior.covariance)
    mean = expected.clone()
    for people, block in _blocks(judgements, n_people):
        own = expected[people]
        mean[people], _ = _climb(block, own, torch.zeros_like(block.margin), own, precision)
    return mean


def updated(posterior: Posterior, z: Tensor, margin: Tensor, p_chosen: Tensor, weight: Tensor) -> Posterior:
    """The posteriors of m people after one more judgement each, from mean and covariance alone.

    A judgement tells of nothing but its own logit <z, o>, so only that is fitted, and what hangs together with it
    follows. The earlier judgements are not looked at again: they stay the Gaussian that they were.

    Args:
        z: difference of the two texts, [m, r].
        margin: logit c at offset 0 (`conditional_margins`), [m].
        p_chosen, weight: label and weight, [m].
    """
    reach = (posterior.covariance @ z.unsqueeze(-1)).squeeze(-1)  # covariance of the offset with the logit
    mean, variance = (z * posterior.mean).sum(-1), (z * reach).sum(-1).clamp_min(1e-12)
    one = _Block(torch.ones_like(z[:, :1, None]), margin[:, None], p_chosen[:, None], weight[:, None])
    m, v = mean[:, None], variance
    for _ in range(_STEPS):
        before = m
        m, curvature = _climb(one, m, v[:, None], mean[:, None], (1.0 / variance)[:, None, None])
        v = 1.0 / curvature[:, 0, 0]
        if float(((m - before).abs() / v.sqrt()[:, None]).max()) < 0.1 * SETTLED:
            break
    gain = reach / variance[:, None]
    shrunk = (1.0 - v / variance)[:, None, None] * reach.unsqueeze(-1) * gain.unsqueeze(1)
    return Posterior(posterior.mean + gain * (m[:, 0] - mean)[:, None], posterior.covariance - shrunk)


def predicted(judgements: Judgements, prior: Prior, posterior: Posterior) -> Tensor:
    """P(chosen preferred) of each comparison by its judge, integrated over their posterior, [n]."""
    c = conditional_margins(judgements, prior.marginal)
    out = torch.empty_like(c)
    size = max(1, BLOCK // max(prior.covariance.numel(), len(FINE[0])))
    for start in range(0, len(judgements), size):
        part = slice(start, start + size)
        z, people = judgements.differences(part), judgements.people[part]
        variance = torch.einsum("nr,nrs,ns->n", z, posterior.covariance[people], z)
        out[part] = integrated(c[part] + (z * posterior.mean[people]).sum(-1), variance)
    return out


@dataclass(frozen=True)
class _Block:
    """Comparisons of some people, padded: z [b, n, r]; margin, p_chosen, weight [b, n], weight 0 on padding."""

    z: Tensor
    margin: Tensor
    p_chosen: Tensor
    weight: Tensor


def _blocks(judgements: Judgements, n_people: int) -> Iterator[tuple[Tensor, _Block]]:
    """(people, their comparisons) for everybody who has any; people with about as many stand together."""
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
        index = by_person[(first[people, None] + slots).clamp_max(len(judgements) - 1)]
        z = judgements.differences(index.flatten()).view(*index.shape, r)
        weight = judgements.weight[index] * real
        yield people, _Block(z, judgements.margin[index], judgements.p_chosen[index], weight)
        done += size


def _climb(block: _Block, start: Tensor, variance: Tensor, mean: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """(best mean [b, r], curvature there [b, r, r]) of each person's bound, which is concave, by damped Newton steps.

    `variance` [b, n] is that of each logit under the person's covariance, over which the likelihood is averaged; the
    prior's `mean` and `precision` are one for all, or one for each person.
    """
    offset, value = start, _bound(block, start, variance, mean, precision)
    for _ in range(_STEPS):
        gradient, curvature = _derivatives(block, offset, variance, mean, precision)
        step = torch.cholesky_solve(gradient.unsqueeze(-1), torch.linalg.cholesky(curvature)).squeeze(-1)
        if float((gradient * step).sum(-1).max()) < 1e-8:
            break
        size = torch.ones_like(value)
        for _ in range(_HALVINGS):
            candidate = offset + size[:, None] * step
            reached = _bound(block, candidate, variance, mean, precision)
            worse = reached < value - 1e-4 * value.abs().clamp_min(1e-2)  # beyond what float32 rounds away
            if not worse.any():
                break
            size = torch.where(worse, 0.5 * size, size)
        offset = torch.where(worse[:, None], offset, candidate)
        value = torch.where(worse, value, reached)
    return offset, _derivatives(block, offset, variance, mean, precision)[1]


def _bound(block: _Block, offset: Tensor, variance: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """Expected log likelihood less the pull of the prior, [b]; what depends on the covariance alone is left out."""
    nodes, weights = (part.to(offset) for part in COARSE)
    logits = _logits(block, offset).unsqueeze(-1) + spread_of(variance, nodes)
    likelihood = block.p_chosen * (F.logsigmoid(logits) @ weights)
    likelihood = likelihood + (1.0 - block.p_chosen) * (F.logsigmoid(-logits) @ weights)
    away = offset - mean
    return (block.weight * likelihood).sum(-1) - 0.5 * (_times(away, precision) * away).sum(-1)


def _derivatives(
    block: _Block, offset: Tensor, variance: Tensor, mean: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor]:
    """(gradient [b, r], minus the Hessian [b, r, r]) of the bound."""
    nodes, weights = (part.to(offset) for part in COARSE)
    p = torch.sigmoid(_logits(block, offset).unsqueeze(-1) + spread_of(variance, nodes))
    expected, slope = p @ weights, (p * (1.0 - p)) @ weights
    pull = (block.weight * (block.p_chosen - expected)).unsqueeze(1) @ block.z
    gradient = pull.squeeze(1) - _times(offset - mean, precision)
    weighted = (block.weight * slope).unsqueeze(-1) * block.z
    return gradient, weighted.transpose(1, 2) @ block.z + precision


def _logits(block: _Block, offset: Tensor) -> Tensor:
    return block.margin + (block.z @ offset.unsqueeze(-1)).squeeze(-1)


def _times(away: Tensor, precision: Tensor) -> Tensor:
    """[b, r] times a matrix for all, [r, r], or one for each, [b, r, r]."""
    return (away.unsqueeze(1) @ precision).squeeze(1)
