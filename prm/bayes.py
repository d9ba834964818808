"""Empirical-Bayes users: a person is a draw from everybody, and few judgements leave them close to the average.

A comparison of two texts has the population's logit g, learnt without this comparison, and a difference z [r] in some
subspace of the features. Person u prefers the first text with P = sigmoid(c + <z, o_u>), o_u ~ N(mu, S); S is learnt
from everybody by EM. g is a marginal logit: it already says how a random person answers. c is therefore g inflated, so
that integrating over N(0, S) gives sigmoid(g) back (a marginalised model: Heagerty, Biometrics 1999). The mean of all
people is in g too: mu is 0 but for people of whom something is known beforehand.

A posterior is the Gaussian closest to the exact one (variational, with the likelihood integrated by quadrature): a mode
with the curvature there would make S, and so everybody's distance from the average, far too small.

Numbers in, numbers out: tensors, and no model, tokenizer or file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 2**22  # numbers that are worked on at once
_STEPS, _HALVINGS, _ROUNDS = 30, 8, 60
_SETTLED = 1e-3  # relative change of S, and deviations of a posterior mean, that end the search


def _quadrature(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of expectations under N(0, 1) (Gauss-Hermite)."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(x), torch.from_numpy(w / w.sum())


_FINE, _COARSE = _quadrature(32), _quadrature(12)


@dataclass(frozen=True)
class Prior:
    """What is known of a person before they judge: o ~ N(mean [r], covariance [r, r])."""

    mean: Tensor
    covariance: Tensor


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


def integrated(mean: Tensor, variance: Tensor) -> Tensor:
    """E[sigmoid(x)] for x ~ N(mean, variance), elementwise."""
    nodes, weights = (part.to(mean) for part in _FINE)
    return torch.sigmoid(mean.unsqueeze(-1) + _spread(variance, nodes)) @ weights


def inflated(margin: Tensor, variance: Tensor) -> Tensor:
    """The logit c with E[sigmoid(c + e)] = sigmoid(margin) for e ~ N(0, variance), elementwise."""
    nodes, weights = (part.to(margin) for part in _FINE)
    spread, target = _spread(variance, nodes), torch.sigmoid(margin)
    found = margin * (1.0 + torch.pi / 8.0 * variance).sqrt()  # the probit approximation, off by a few hundredths
    for _ in range(4):
        p = torch.sigmoid(found.unsqueeze(-1) + spread)
        slope = ((p * (1.0 - p)) @ weights).clamp_min(1e-12)
        found = found - ((p @ weights - target) / slope).clamp(-2.0, 2.0)
    return found


def conditional_margins(judgements: Judgements, covariance: Tensor) -> Tensor:
    """c of each comparison, [n]: the population's logits as they are for a person whose offset is known to be 0."""
    out = torch.empty_like(judgements.margin)
    size = max(1, _BLOCK // max(len(covariance), len(_FINE[0])))
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
    judged = replace(judgements, margin=conditional_margins(judgements, prior.covariance))
    precision = torch.linalg.inv(prior.covariance)
    mean = prior.mean.expand(n_people, -1).clone()
    covariance = prior.covariance.expand(n_people, -1, -1).clone()
    for people, block in _blocks(judged, n_people):
        m, c = (mean[people], covariance[people]) if start is None else (start.mean[people], start.covariance[people])
        for _ in range(rounds):
            before = m
            variance = ((block.z @ c) * block.z).sum(-1)
            m, curvature = _climb(block, m, variance, prior.mean, precision)
            c = torch.cholesky_inverse(torch.linalg.cholesky(curvature))
            away = (m - before).abs() / c.diagonal(dim1=1, dim2=2).sqrt()
            if float(away.max()) < _SETTLED:
                break
        mean[people], covariance[people] = m, c
    return Posterior(mean, covariance)


def fit_modes(judgements: Judgements, prior: Prior, n_people: int) -> Tensor:
    """Everyone's most likely offset, [n_people, r], with `margin` as logits at offset 0: nothing is integrated.

    With z the features and S = s^2 I, this is the individual model's offset under the penalty 1 / s^2.
    """
    mean = prior.mean.expand(n_people, -1).clone()
    precision = torch.linalg.inv(prior.covariance)
    for people, block in _blocks(judgements, n_people):
        mean[people], _ = _climb(block, mean[people], torch.zeros_like(block.margin), prior.mean, precision)
    return mean


def fit_prior(judgements: Judgements, n_people: int, variance: float = 1.0) -> tuple[Prior, Posterior]:
    """S by EM, from N(0, variance I) on, and everybody's posterior under it.

    Few people cannot tell all r (r + 1) / 2 numbers of S. Its off-diagonal counts for as much as there are people to
    that many numbers, and each direction's own variance is drawn towards the mean of all by ten people's worth.
    """
    r, like = judgements.texts.shape[1], judgements.texts
    prior = Prior(torch.zeros(r).to(like), variance * torch.eye(r).to(like))
    judged = torch.bincount(judgements.people, minlength=n_people) > 0
    posterior = fit_posterior(judgements, prior, n_people)
    for _ in range(_ROUNDS):
        found = _maximised(posterior.mean[judged], posterior.covariance[judged])
        moved = float((found.covariance - prior.covariance).norm() / prior.covariance.norm())
        prior, posterior = found, fit_posterior(judgements, found, n_people, posterior, rounds=2)
        if moved < _SETTLED:
            break
    return prior, fit_posterior(judgements, prior, n_people, posterior)


def predicted(judgements: Judgements, prior: Prior, posterior: Posterior) -> Tensor:
    """P(chosen preferred) of each comparison by its judge, integrated over their posterior, [n]."""
    c = conditional_margins(judgements, prior.covariance)
    out = torch.empty_like(c)
    size = max(1, _BLOCK // max(prior.covariance.numel(), len(_FINE[0])))
    for start in range(0, len(judgements), size):
        part = slice(start, start + size)
        z, people = judgements.differences(part), judgements.people[part]
        variance = torch.einsum("nr,nrs,ns->n", z, posterior.covariance[people], z)
        out[part] = integrated(c[part] + (z * posterior.mean[people]).sum(-1), variance)
    return out


def _maximised(means: Tensor, covariances: Tensor) -> Prior:
    """The M-step, from the posteriors of everybody who has judged."""
    m, r = means.shape
    scatter = covariances.sum(0) + means.T @ means
    own = scatter.diagonal()
    variances = (own + 10.0 * own.mean() / m) / (m + 10.0)
    full = m / (m + 0.5 * r * (r + 1))
    return Prior(torch.zeros_like(own), full * scatter / m + (1.0 - full) * torch.diag(variances))


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
        while size > 1 and size * (int(counts[order[done + size - 1]]) + r) * max(r, len(_COARSE[0])) > _BLOCK:
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

    `variance` [b, n] is that of each logit under the person's covariance, over which the likelihood is averaged.
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
    nodes, weights = (part.to(offset) for part in _COARSE)
    logits = _logits(block, offset).unsqueeze(-1) + _spread(variance, nodes)
    likelihood = block.p_chosen * (F.logsigmoid(logits) @ weights)
    likelihood = likelihood + (1.0 - block.p_chosen) * (F.logsigmoid(-logits) @ weights)
    away = offset - mean
    return (block.weight * likelihood).sum(-1) - 0.5 * ((away @ precision) * away).sum(-1)


def _derivatives(
    block: _Block, offset: Tensor, variance: Tensor, mean: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor]:
    """(gradient [b, r], minus the Hessian [b, r, r]) of the bound."""
    nodes, weights = (part.to(offset) for part in _COARSE)
    p = torch.sigmoid(_logits(block, offset).unsqueeze(-1) + _spread(variance, nodes))
    expected, slope = p @ weights, (p * (1.0 - p)) @ weights
    pull = (block.weight * (block.p_chosen - expected)).unsqueeze(1) @ block.z
    gradient = pull.squeeze(1) - (offset - mean) @ precision
    weighted = (block.weight * slope).unsqueeze(-1) * block.z
    return gradient, weighted.transpose(1, 2) @ block.z + precision


def _logits(block: _Block, offset: Tensor) -> Tensor:
    return block.margin + (block.z @ offset.unsqueeze(-1)).squeeze(-1)


def _spread(variance: Tensor, nodes: Tensor) -> Tensor:
    return variance.clamp_min(0.0).sqrt().unsqueeze(-1) * nodes
