"""Empirical-Bayes users on cached features: choose the settings, fit the prior and each user's posterior."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prm.config import Kernel, TrainConfig
from prm.io.progress import progress
from prm.training.heads.average import fit_average
from prm.training.heads.grid_search import HeadData, Search, Trial, compact, head_states, scored
from prm.training.heads.objective import PairFeatures, margins
from prm.training.heads.settings_choice import Chosen, best_of, choose, held_out_margins, near_trials, parts_of
from prm.users.bayes.posterior import (
    BLOCK,
    Posterior,
    PosteriorData,
    Prior,
    conditional_margins,
    iter_posteriors,
    updated,
)
from prm.users.bayes.prior import fit_prior, population
from prm.users.bayes_model import Bayes
from prm.users.kinds import Uniform
from prm.users.user_model import UserModel

_TEMPERATURES = sorted((round(1.025**k, 4) for k in range(-28, 29)), key=lambda t: abs(np.log(t)))  # a half to two
_CARRIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
_SPREAD = 2.0  # EM starts at this variance over users of an average pair's logit


def search_bayes(data: HeadData, uniform: Search, config: TrainConfig, n_rows: int) -> tuple[Chosen, list[Trial]]:
    """Choose kernel, carried share and temperature; returns the choice and one trial per kernel and share.

    The population's logit is that of the uniform model with the same kernel, averaged over its settings within one
    standard error of the best. The generic user is that model whatever else is chosen, and users differ in all
    features that it reads. Two values remain. The covariance S of the users may be specific to the comparisons it is
    fitted to (to their topics, say), so only a share of it carries over; a share near 0 leaves the uniform model. And
    the users' logits have a temperature. Each fold is evaluated with the uniform settings, kernel, share and
    temperature that do best on the other folds.

    The uniform head is fitted to the same comparisons as the users' offsets. Offsets from a head that has not seen
    them would fit what users have in common a second time (docs/LOG.md).
    """
    held_out = ~uniform.margins[0].isnan()
    per_kernel = [_predicted_margins(data, uniform.of(kernel), config, n_rows, held_out) for kernel in config.kernels]
    trials = [trial for one in per_kernel for trial in one.trials]
    margin, share = torch.cat([one.predicted for one in per_kernel], 1)
    tempered = Tempered(margin, share, [trial.kernel for trial in trials], data)
    cross_validated = held_out_margins(lambda others, part: tempered.at(*tempered.best(others))[part], margin[0], data)
    best, temperature = tempered.best(held_out.nonzero()[:, 0])
    nll, accuracy = scored(cross_validated, data)
    chosen = choose(uniform.of(trials[best].kernel), data)
    chosen = replace(chosen, margin=cross_validated, validation_nll=nll, validation_accuracy=accuracy)
    return replace(chosen, carry=trials[best].carry, temperature=temperature), trials


@dataclass(frozen=True)
class _Predicted:
    """One kernel's trial per share in `_CARRIES`; held-out margins and known shares of the users, [2, c, n]."""

    trials: list[Trial]
    predicted: Tensor


def _predicted_margins(
    data: HeadData, uniform: Search, config: TrainConfig, n_rows: int, held_out: Tensor
) -> _Predicted:
    started, uniform_choice = time.perf_counter(), choose(uniform, data)
    out = torch.full((2, len(_CARRIES), len(held_out)), float("nan"))
    name = f"fitting users ({uniform_choice.kernel})"
    for others, part in progress(list(parts_of(data, held_out)), desc=name, unit="fold"):
        train = (data.fold != data.fold[part[0], 0]).all(1).nonzero()[:, 0]
        chosen = replace(uniform_choice, trials=near_trials(uniform, data, others))
        texts = head_states(data, chosen.feature_spec, chosen.kernel, config, train)
        prior_fit, check = _fit_head_and_prior(data, chosen, config, n_rows, texts, train), data.pairs(texts).take(part)
        for i, carry in enumerate(_CARRIES):
            model = prior_fit.model(carry)
            out[0, i, part], out[1, i, part] = _averaged_margins(model, check), model.share_known(check.rows)
    seconds = round((time.perf_counter() - started) / len(_CARRIES), 3)
    setting = uniform_choice.feature_spec, uniform_choice.kernel, uniform_choice.l2, 0.0
    trials = [Trial(*setting, *scored(m, data), 0, seconds, carry) for m, carry in zip(out[0], _CARRIES, strict=True)]
    return _Predicted(trials, out)


@torch.no_grad()
def _averaged_margins(model: Bayes, pairs: PairFeatures) -> Tensor:
    """Margins [n] as the scorer gives them: averaged over each user's posterior, pair by pair."""
    base = None if pairs.base is None else pairs.base[pairs.chosen] - pairs.base[pairs.rejected]
    return torch.cat(
        [model.margins(d, pairs.rows[k], None if base is None else base[k]) for k, d in pairs.differences()]
    )


@dataclass(frozen=True)
class Tempered:
    """Held-out margins by trial, [c, n], the exponents of their temperature, the known shares, [c, n]; kernels, c."""

    margin: Tensor
    share: Tensor
    kernels: Sequence[Kernel]
    data: HeadData

    def at(self, trial: int, temperature: float) -> Tensor:
        """Margins of all pairs for a trial's index and a temperature, [n]."""
        return self.margin[trial] / temperature ** self.share[trial]

    def best(self, index: Tensor) -> tuple[int, float]:
        """The trial's index and the temperature that do best on the pairs at `index`."""
        settings = list(itertools.product(range(len(self.margin)), _TEMPERATURES))
        kernels = [self.kernels[trial] for trial, _ in settings]
        return settings[best_of(lambda i: self.at(*settings[i]), kernels, self.data, index)]


def fit_bayes(data: HeadData, chosen: Chosen, config: TrainConfig, n_rows: int, texts: Tensor) -> Bayes:
    """The user model with all users, for the chosen settings; `texts`: head inputs of the distinct texts, [t, d]."""
    model = _fit_head_and_prior(data, chosen, config, n_rows, texts).model(chosen.carry)
    with torch.no_grad():
        model.temperature.fill_(chosen.temperature)
    return model


@dataclass(frozen=True)
class _PriorFit:
    """The population's head, the comparisons in the subspace `basis`, and the covariance of users there."""

    score: Uniform
    log: PosteriorData
    basis: Tensor
    covariance: Tensor
    n_rows: int

    def model(self, carry: float) -> Bayes:
        """The user model with all posteriors, if this share of the covariance carries over."""
        return _fit_users(self.score, self.log, self.basis, population(carry * self.covariance), self.n_rows)


def _fit_head_and_prior(
    data: HeadData, chosen: Chosen, config: TrainConfig, n_rows: int, texts: Tensor, train: Tensor | None = None
) -> _PriorFit:
    uniform = replace(config, users=replace(config.users, kind="uniform"))
    score = fit_average(data, chosen, uniform, 1, texts, train, tolerance=1e-7)
    assert isinstance(score, Uniform)
    pairs = data.pairs(texts) if train is None else data.pairs(texts).take(train)
    basis = directions(pairs, config.users.rank, score.embedding[0].detach())
    log = _project(score, pairs, basis)
    return _PriorFit(score, log, basis, fit_prior(log, n_rows, _start(log)).covariance, n_rows)


@torch.no_grad()
def _fit_users(score: Uniform, log: PosteriorData, basis: Tensor, prior: Prior, n_rows: int) -> Bayes:
    """A user model with every user's posterior given their comparisons."""
    model = Bayes(n_rows, 1, *basis.shape)
    model.generic.copy_(score.embedding)
    model.basis.copy_(basis)
    z = log.differences()
    model.moment.copy_(z.T @ (log.weight[:, None] * z) / log.weight.sum())
    model.set_prior(prior.covariance)
    model.flatness.fill_(float(model.flatness[0]))
    _set_posteriors(model, log, prior)
    return model


def _set_posteriors(model: Bayes, log: PosteriorData, prior: Prior) -> None:
    """Set the posteriors of the users in `log`, whose rows hold the prior, from these comparisons."""
    for rows, block in iter_posteriors(log, prior, model.n_rows):
        model.set_posterior(rows, Posterior(block.mean, block.factor))


@torch.no_grad()
def finish_bayes(model: Bayes, pairs: PairFeatures) -> None:
    """Set the posteriors of the users in `pairs`, whose rows hold the prior, from these comparisons."""
    if len(pairs):
        _set_posteriors(model, _project(model, pairs, model.basis), population(model.prior))


@torch.no_grad()
def continue_bayes(model: Bayes, pairs: PairFeatures) -> int:
    """Update posteriors by further comparisons, one after the other, without the earlier ones.

    Other users do not change. Returns the number of rounds; each takes the next comparison of every user (`updated`).
    """
    if not len(pairs):
        return 0
    log = _project(model, pairs, model.basis)
    logits = conditional_margins(log, model.prior)
    order = torch.argsort(pairs.rows, stable=True)
    counts = torch.bincount(pairs.rows)
    first = counts.cumsum(0) - counts
    rounds = int(counts.max())
    for k in range(rounds):
        for rows in (counts > k).nonzero().squeeze(1).split(max(1, BLOCK // model.max_row_bytes)):
            index = order[first[rows] + k]
            before, z = model.posterior(rows), log.differences(index)
            after = updated(before, model.prior, z, logits[index], log.p_chosen[index], log.weight[index])
            model.set_posterior(rows, after, model.left_out(rows))
    return rounds


@torch.no_grad()
def directions(pairs: PairFeatures, rank: int, score: Tensor) -> Tensor:
    """Orthonormal directions [d, r] in which users may differ, r = min(rank, d).

    The first is that of the population's head `score` [d], along which users differ in how decided they are (their
    temperature). The others are principal directions of the differences between two responses, without that one.
    """
    d = pairs.texts.shape[1]
    texts, axes = compact(pairs.texts)
    if texts.shape[1] < min(rank, d):
        texts, axes = pairs.texts, torch.eye(d)
    small, score = replace(pairs, texts=texts), score @ axes
    length = score.norm()
    first = score[:, None] / length if float(length) > 0.0 else score.new_zeros(len(score), 0)
    total = torch.zeros(len(score), len(score))
    for _, chunk in small.differences():
        rest = chunk - (chunk @ first) @ first.T
        total += rest.T @ rest
    _, vectors = torch.linalg.eigh(total)
    n = min(rank, d) - first.shape[1]
    return axes @ torch.cat([first, vectors[:, len(score) - n :].flip(1)], 1)


@torch.no_grad()
def _project(score: UserModel, pairs: PairFeatures, basis: Tensor) -> PosteriorData:
    """Comparisons in the subspace, with the logits of the population's head."""
    margin = margins(score, pairs, generic=True)
    z = pairs.texts @ basis
    return PosteriorData(z, pairs.chosen, pairs.rejected, pairs.rows, pairs.p_chosen, pairs.weight, margin)


def _start(log: PosteriorData) -> float:
    return _SPREAD / float(log.differences().square().sum(1).mean())
