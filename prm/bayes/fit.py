"""Empirical-Bayes users on cached features: which features to read, what is known of people, and of each person."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from prm.bayes.posterior import Judgements, Posterior, conditional_margins, fit_posterior, predicted, updated
from prm.bayes.prior import fit_prior, population
from prm.config import TrainConfig
from prm.heads import PairFeatures, Penalty, fit_head, margins
from prm.losses import bradley_terry, weighted_mean
from prm.metrics import correct
from prm.search import HeadData, Trial, head_states
from prm.user_models import Bayes, Uniform

_SPREAD = 0.5  # variance of an average pair's logit among people at which EM starts


def search_bayes(data: HeadData, uniform: Sequence[Trial], config: TrainConfig, n_rows: int) -> list[Trial]:
    """One trial for each reading and kernel, judged on the first fold.

    The population's logit is the uniform head with the penalty that did best with these. It is fitted
    anew without each fold, so that no offset is fitted to its residuals.
    """
    found = []
    for reading, kernel in itertools.product(data.features, config.kernels):
        started = time.perf_counter()
        alike = [trial for trial in uniform if (trial.reading, trial.kernel) == (reading, kernel)]
        best = min(alike, key=lambda trial: trial.validation_nll)
        texts = head_states(data, reading, kernel, config)  # of held-out texts too: no label of theirs is looked at
        pairs = data.pairs(texts)
        learns, held_out = (data.fold != 0).all(1), (data.fold == 0).all(1)
        score = _uniform(pairs.take(learns.nonzero().squeeze(1)), best.l2).embedding[0]
        log = _judgements(data, pairs, best.l2, directions(pairs, config.users.rank, score))
        prior, posterior = fit_prior(_take(log, learns), n_rows, _start(log))
        p = predicted(_take(log, held_out), prior, posterior).clamp(1e-6, 1.0 - 1e-6)
        label, weight = data.p_chosen[held_out], data.weight[held_out]
        nll = float(weighted_mean(bradley_terry(torch.logit(p), label), weight))
        right = float(np.nanmean(correct(torch.logit(p), label)))
        seconds = round(time.perf_counter() - started, 3)
        found.append(replace(best, validation_nll=nll, validation_accuracy=right, steps=0, seconds=seconds))
    return found


def fit_bayes(data: HeadData, best: Trial, config: TrainConfig, n_rows: int, texts: Tensor) -> Bayes:
    """Everybody, over what heads see of the texts, [t, d], with the chosen setting."""
    pairs = data.pairs(texts)
    score = _uniform(pairs, best.l2).embedding.detach()
    basis = directions(pairs, config.users.rank, score[0])
    log = _judgements(data, pairs, best.l2, basis)
    prior, posterior = fit_prior(log, n_rows, _start(log))
    model = Bayes(n_rows, 1, texts.shape[1], log.texts.shape[1])
    with torch.no_grad():
        model.generic.copy_(score)
        model.basis.copy_(basis)
        z = log.differences()
        model.moment.copy_(z.T @ (log.weight[:, None] * z) / log.weight.sum())
    model.set_prior(prior.covariance)
    model.set_posterior(torch.arange(1, n_rows), posterior.mean[1:], posterior.covariance[1:])
    return model


@torch.no_grad()
def settle_bayes(model: Bayes, pairs: PairFeatures) -> None:
    """The posteriors of everybody in `pairs`, from these judgements and what is known of people at large."""
    if not len(pairs):
        return
    log, rows = _log(model, pairs), torch.unique(pairs.rows)
    found = fit_posterior(log, population(model.prior), model.n_rows)
    model.set_posterior(rows, found.mean[rows], found.covariance[rows])


@torch.no_grad()
def continue_bayes(model: Bayes, pairs: PairFeatures) -> int:
    """Further judgements, one after the other, of people whose earlier ones are not at hand; nobody else moves.

    Returns the number of rounds, in each of which everybody's next judgement is taken in (`updated`).
    """
    if not len(pairs):
        return 0
    log = _log(model, pairs)
    logits = conditional_margins(log, model.prior)
    order = torch.argsort(pairs.rows, stable=True)
    counts = torch.bincount(pairs.rows)
    first = counts.cumsum(0) - counts
    rounds = int(counts.max())
    for k in range(rounds):
        people = (counts > k).nonzero().squeeze(1)
        index = order[first[people] + k]
        known = Posterior(model.means[people], model.covariances[people])
        found = updated(known, log.differences(index), logits[index], log.p_chosen[index], log.weight[index])
        model.set_posterior(people, found.mean, found.covariance)
    return rounds


def _log(model: Bayes, pairs: PairFeatures) -> Judgements:
    """Comparisons that the population's head has not seen, in the model's subspace."""
    population = margins(model, pairs, generic=True)
    z = pairs.texts @ model.basis
    return Judgements(z, pairs.chosen, pairs.rejected, pairs.rows, pairs.p_chosen, pairs.weight, population)


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


def _judgements(data: HeadData, pairs: PairFeatures, l2: float, basis: Tensor) -> Judgements:
    """Everybody's comparisons in the subspace, with the logits of heads that have not seen them."""
    margin = torch.empty(len(pairs))
    for fold in range(int(data.fold.max()) + 1):
        mine = (data.fold[:, 0] == fold).nonzero().squeeze(1)
        others = (data.fold != fold).all(1).nonzero().squeeze(1)
        head = _uniform(pairs.take(others), l2)
        with torch.no_grad():
            margin[mine] = margins(head, pairs.take(mine))
    z = pairs.texts @ basis
    return Judgements(z, pairs.chosen, pairs.rejected, pairs.rows, pairs.p_chosen, pairs.weight, margin)


def _uniform(pairs: PairFeatures, l2: float) -> Uniform:
    head = Uniform(1, 1, pairs.texts.shape[1])
    fit_head(head, pairs, 0.0, Penalty(l2, 0.0), tolerance=1e-7)
    return head


def _start(log: Judgements) -> float:
    return _SPREAD / float(log.differences().square().sum(1).mean())


def _take(log: Judgements, index: Tensor) -> Judgements:
    names = ("chosen", "rejected", "people", "p_chosen", "weight", "margin")
    return replace(log, **{name: getattr(log, name)[index] for name in names})
