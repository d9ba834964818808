"""Empirical-Bayes users on cached features: which features to read, what is known of people, and of each person."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from prm.bayes.posterior import (
    Judgements,
    Posterior,
    Prior,
    conditional_margins,
    fit_posterior,
    strongest,
    updated,
)
from prm.bayes.prior import fit_prior, population
from prm.bayes.texts import TextMap, fit_text_map
from prm.config import TrainConfig
from prm.heads import PairFeatures, Penalty, fit_head, margins
from prm.losses import bradley_terry, weighted_mean
from prm.metrics import correct
from prm.model import standard_of
from prm.search import HeadData, Trial, head_states
from prm.text_prior import TextPrior
from prm.user_models import Bayes, Uniform, UserModel

_TEMPERATURES = sorted((round(1.025**k, 4) for k in range(-28, 29)), key=lambda t: abs(np.log(t)))  # a half to two
_CARRIES = (1.0, 0.3, 0.1)
_SPREAD = 2.0  # variance of an average pair's logit among people at which EM starts


def search_bayes(data: HeadData, uniform: Sequence[Trial], config: TrainConfig, n_rows: int) -> list[Trial]:
    """One trial for each reading and kernel, judged on the first fold, as are two things more.

    What people are like on the comparisons that S is learnt from may be true of these alone, of their topics, say: only
    a share of S carries over. Their logits have a temperature.

    The population's logit is the uniform head with the penalty that did best with these. It has seen what people's
    offsets are fitted to: offsets from what a head says that has not seen it would also learn what all have in common,
    once more (docs/LOG.md).
    """
    found = []
    for reading, kernel in itertools.product(data.features, config.kernels):
        started = time.perf_counter()
        alike = [trial for trial in uniform if (trial.reading, trial.kernel) == (reading, kernel)]
        best = min(alike, key=lambda trial: trial.validation_nll)
        texts = head_states(data, reading, kernel, config)  # of held-out texts too: no label of theirs is looked at
        pairs = data.pairs(texts)
        learns, held_out = (fold.all(1).nonzero()[:, 0] for fold in (data.fold != 0, data.fold == 0))
        score = _uniform(pairs.take(learns), best.l2)
        basis = directions(pairs, config.users.rank, score.embedding[0])
        log, check = _judgements(score, pairs.take(learns), basis), pairs.take(held_out)
        covariance = fit_prior(log, n_rows, _start(log)).covariance
        tried = []
        for carry in _CARRIES:
            model = _known(score, log, basis, population(carry * covariance), n_rows)
            tried.append(_judged(replace(best, carry=carry), model, check))
        # where nobody held out has judged anything, nothing but rounding tells one share from another
        winner = min(tried, key=lambda trial: round(trial.validation_nll, 6))
        found.append(replace(winner, steps=0, seconds=round(time.perf_counter() - started, 3)))
    return found


@torch.no_grad()
def _judged(trial: Trial, model: Bayes, check: PairFeatures) -> Trial:
    """The setting with its temperature, and how it does on comparisons held out."""
    model.temperature.fill_(_temperature(model, check))
    margin = margins(model, check)
    return replace(
        trial,
        temperature=float(model.temperature),
        validation_nll=float(weighted_mean(bradley_terry(margin, check.p_chosen), check.weight)),
        validation_accuracy=float(np.nanmean(correct(margin, check.p_chosen))),
    )


def fit_bayes(data: HeadData, best: Trial, config: TrainConfig, n_rows: int, texts: Tensor) -> Bayes:
    """Everybody, over what heads see of the texts, [t, d], with the chosen setting."""
    pairs = data.pairs(texts)
    score = _uniform(pairs, best.l2)
    basis = directions(pairs, config.users.rank, score.embedding[0].detach())
    log = _judgements(score, pairs, basis)
    prior = population(best.carry * fit_prior(log, n_rows, _start(log)).covariance)
    model = _known(score, log, basis, prior, n_rows)
    with torch.no_grad():
        model.temperature.fill_(best.temperature)
    return model


@torch.no_grad()
def _known(score: Uniform, log: Judgements, basis: Tensor, prior: Prior, n_rows: int) -> Bayes:
    """Everybody by their judgements."""
    model = Bayes(n_rows, 1, *basis.shape)
    model.generic.copy_(score.embedding)
    model.basis.copy_(basis)
    z = log.differences()
    model.moment.copy_(z.T @ (log.weight[:, None] * z) / log.weight.sum())
    model.set_prior(prior.covariance)
    posterior = fit_posterior(log, prior, n_rows, model.kept)
    model.set_posterior(torch.arange(1, n_rows), posterior.mean[1:], posterior.factor[1:])
    return model


@torch.no_grad()
def _temperature(model: Bayes, pairs: PairFeatures) -> float:
    """The temperature that makes held-out comparisons likeliest, for a model that has 1."""
    margin = margins(model, pairs)

    def loss(temperature: float) -> float:
        return float(
            weighted_mean(bradley_terry(margin / model.temper(pairs.rows, temperature), pairs.p_chosen), pairs.weight)
        )

    return min(_TEMPERATURES, key=loss)


@torch.no_grad()
def tell_bayes(model: Bayes, pairs: PairFeatures, rows: Tensor, states: Tensor, places: Tensor) -> TextMap | None:
    """Learn what texts say of the people who wrote them, if anything, and take it into these people's posteriors.

    Nobody else's moves by a bit; where the texts say nothing (`None`), nor do theirs.

    Args:
        pairs: judgements, of everybody with a text among others.
        rows: of the people with a text, int64 [m].
        states: what the backbone gives of the distinct texts, [t, k].
        places: of each of these people's text among them, int64 [m].
    """
    mean, scale = standard_of(states)
    known = Posterior(model.means[rows], model.factors[rows])
    found = fit_text_map((states - mean) / scale, places, known, model.prior)
    if found is None:
        return None
    model.told = TextPrior(states.shape[1], len(model.prior), model.kept)
    root = found.root[:, -model.kept :]  # the strongest directions come last
    for buffer, numbers in zip(model.told.buffers(), (mean, scale, found.weight, root), strict=True):
        buffer.copy_(numbers)
    model.set_posterior(rows, *model.told(states[places]))
    settle_bayes(model, pairs.take(torch.isin(pairs.rows, rows).nonzero().squeeze(1)))
    return found


@torch.no_grad()
def settle_bayes(model: Bayes, pairs: PairFeatures) -> None:
    """The posteriors of everybody in `pairs`, who have not been judging before, from these judgements.

    Their rows hold what is known beforehand: nothing but what people are like at large, or what their text says.
    """
    told = model.known(torch.arange(model.n_rows, device=pairs.rows.device))[pairs.rows]
    _settle(model, pairs.take((~told).nonzero().squeeze(1)), population(model.prior))
    if model.told is not None:
        narrower = model.prior - model.told.factor @ model.told.factor.T
        _settle(model, pairs.take(told.nonzero().squeeze(1)), Prior(model.means, narrower, model.prior))


def _settle(model: Bayes, pairs: PairFeatures, prior: Prior) -> None:
    if not len(pairs):
        return
    log, rows = _judgements(model, pairs, model.basis), torch.unique(pairs.rows)
    found = fit_posterior(log, prior, model.n_rows, model.kept)
    before, factor = model.factors[rows], found.factor[rows]
    if before.any():
        factor = strongest(torch.cat([before, factor], 2), model.prior, model.kept)
    model.set_posterior(rows, found.mean[rows], factor)


@torch.no_grad()
def continue_bayes(model: Bayes, pairs: PairFeatures) -> int:
    """Further judgements, one after the other, of people whose earlier ones are not at hand; nobody else moves.

    Returns the number of rounds, in each of which everybody's next judgement is taken in (`updated`).
    """
    if not len(pairs):
        return 0
    log = _judgements(model, pairs, model.basis)
    logits = conditional_margins(log, model.prior)
    order = torch.argsort(pairs.rows, stable=True)
    counts = torch.bincount(pairs.rows)
    first = counts.cumsum(0) - counts
    rounds = int(counts.max())
    for k in range(rounds):
        people = (counts > k).nonzero().squeeze(1)
        index = order[first[people] + k]
        known = Posterior(model.means[people], model.factors[people])
        z = log.differences(index)
        found = updated(known, model.prior, z, logits[index], log.p_chosen[index], log.weight[index])
        model.set_posterior(people, found.mean, found.factor)
    return rounds


@torch.no_grad()
def directions(pairs: PairFeatures, rank: int, score: Tensor) -> Tensor:
    """Orthonormal directions [d, r] in which people may differ, r = min(rank, d).

    First that of the population's score [d], along which a person is more or less decided than others (their
    temperature); then the principal ones of the differences between two answers, less what lies along it.
    """
    d = pairs.texts.shape[1]
    length = score.norm()
    first = score[:, None] / length if float(length) > 0.0 else score.new_zeros(d, 0)
    total = torch.zeros(d, d)
    for _, part in pairs.differences():
        rest = part - (part @ first) @ first.T
        total += rest.T @ rest
    _, vectors = torch.linalg.eigh(total)
    n = min(rank, d) - first.shape[1]
    return torch.cat([first, vectors[:, d - n :].flip(1)], 1)


@torch.no_grad()
def _judgements(score: UserModel, pairs: PairFeatures, basis: Tensor) -> Judgements:
    """Comparisons in the subspace, with the logits that the population's head gives them."""
    margin = margins(score, pairs, generic=True)
    z = pairs.texts @ basis
    return Judgements(z, pairs.chosen, pairs.rejected, pairs.rows, pairs.p_chosen, pairs.weight, margin)


def _uniform(pairs: PairFeatures, l2: float) -> Uniform:
    head = Uniform(1, 1, pairs.texts.shape[1])
    fit_head(head, pairs, 0.0, Penalty(l2, 0.0), tolerance=1e-7)
    return head


def _start(log: Judgements) -> float:
    return _SPREAD / float(log.differences().square().sum(1).mean())
