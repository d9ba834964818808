"""Empirical-Bayes users on cached features: which features to read, what is known of people, and of each person."""

import itertools
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from prm.config import TrainConfig
from prm.io.progress import progress
from prm.models.reward_model import standard_of
from prm.training.head_average import fit_average
from prm.training.head_choice import Chosen, choose, judge, near_trials, parts_of
from prm.training.head_objective import PairFeatures, margins
from prm.training.head_search import HeadData, Search, Trial, compact, head_states, scored
from prm.training.losses import bradley_terry, weighted_mean
from prm.users.bayes.posterior import (
    Posterior,
    PosteriorData,
    Prior,
    conditional_margins,
    fit_posterior,
    strongest,
    updated,
)
from prm.users.bayes.prior import fit_prior, population
from prm.users.bayes.text_regression import TextMap, fit_text_map
from prm.users.models import Bayes, Uniform, UserModel
from prm.users.text_prior import TextPrior

_TEMPERATURES = sorted((round(1.025**k, 4) for k in range(-28, 29)), key=lambda t: abs(np.log(t)))  # a half to two
_CARRIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
_SPREAD = 2.0  # variance of an average pair's logit among people at which EM starts


def search_bayes(data: HeadData, uniform: Search, config: TrainConfig, n_rows: int) -> tuple[Chosen, list[Trial]]:
    """(what is chosen, a trial for each kernel and share), judged on all folds by what the others choose.

    The population's logit is that of the uniform model of the same kernel, the mean of its settings that cannot be
    told from the best: strangers are that model whatever else is chosen, and people differ in all that it reads. Two
    things are left. What people are like on the comparisons that S is learnt from may be true of these alone, of their
    topics, say: only a share of S carries over, down to next to nothing, which leaves the uniform model. And their
    logits have a temperature. A part of the comparisons is judged by the uniform settings, the kernel, the share and
    the temperature that do best on all others.

    The uniform head has seen what people's offsets are fitted to: offsets from what a head says that has not seen it
    would also learn what all have in common, once more (docs/LOG.md).
    """
    known = ~uniform.margins[0].isnan()
    found = [_predicted_margins(data, uniform.of(kernel), config, n_rows, known) for kernel in config.kernels]
    trials = [trial for one in found for trial in one.trials]
    margin, share = torch.cat([one.predicted for one in found], 1)
    tempered = Tempered(margin, share, data)
    judged = judge(lambda others, part: tempered.at(*tempered.best(others), part), margin[0], data)
    place, temperature = tempered.best(known.nonzero()[:, 0])
    nll, right = scored(judged, data)
    chosen = choose(uniform.of(trials[place].kernel), data)
    chosen = replace(chosen, margin=judged, validation_nll=nll, validation_accuracy=right)
    return replace(chosen, carry=trials[place].carry, temperature=temperature), trials


@dataclass(frozen=True)
class _Predicted:
    """A trial for each of `_CARRIES` with one kernel; held-out margins and shares known of who judged, [2, c, n]."""

    trials: list[Trial]
    predicted: Tensor


def _predicted_margins(data: HeadData, uniform: Search, config: TrainConfig, n_rows: int, known: Tensor) -> _Predicted:
    started, everyone = time.perf_counter(), choose(uniform, data)
    out = torch.full((2, len(_CARRIES), len(known)), float("nan"))
    name = f"learning people ({everyone.kernel})"
    for others, part in progress(list(parts_of(data, known)), desc=name, unit="fold"):
        learns = (data.fold != data.fold[part[0], 0]).all(1).nonzero()[:, 0]
        kept = replace(everyone, trials=near_trials(uniform, data, others))
        texts = head_states(data, kept.reading, kept.kernel, config, learns)
        people, check = _learnt(data, kept, config, n_rows, texts, learns), data.pairs(texts).take(part)
        for place, carry in enumerate(_CARRIES):
            model = people.at(carry)
            out[0, place, part], out[1, place, part] = _averaged(model, check), model.share_known(check.rows)
    seconds = round((time.perf_counter() - started) / len(_CARRIES), 3)
    setting = everyone.reading, everyone.kernel, everyone.l2, 0.0
    trials = [Trial(*setting, *scored(m, data), 0, seconds, carry) for m, carry in zip(out[0], _CARRIES, strict=True)]
    return _Predicted(trials, out)


@torch.no_grad()
def _averaged(model: Bayes, pairs: PairFeatures) -> Tensor:
    """Margins [n] as they are scored: averaged, pair by pair, over what is not known of each person."""
    base = None if pairs.base is None else pairs.base[pairs.chosen] - pairs.base[pairs.rejected]
    return torch.cat(
        [model.margins(d, pairs.rows[k], None if base is None else base[k]) for k, d in pairs.differences()]
    )


@dataclass(frozen=True)
class Tempered:
    """Held-out margins by trial, [c, n], and what tempers them."""

    margin: Tensor
    share: Tensor
    data: HeadData

    def at(self, place: int, temperature: float, part: Tensor) -> Tensor:
        """Margins of the pairs at `part`, [m]."""
        return self.margin[place, part] / temperature ** self.share[place, part]

    def best(self, judged: Tensor) -> tuple[int, float]:
        """The trial's place and the temperature that make the pairs at `judged` likeliest."""
        p, weight = self.data.p_chosen[judged], self.data.weight[judged]

        def loss(setting: tuple[int, float]) -> float:
            # where nobody held out has judged anything, nothing but rounding tells one share from another
            return round(float(weighted_mean(bradley_terry(self.at(*setting, judged), p), weight)), 6)

        return min(itertools.product(range(len(self.margin)), _TEMPERATURES), key=loss)


def fit_bayes(data: HeadData, chosen: Chosen, config: TrainConfig, n_rows: int, texts: Tensor) -> Bayes:
    """Everybody, over what heads see of the texts in all that is read, [t, d], with what was chosen."""
    model = _learnt(data, chosen, config, n_rows, texts).at(chosen.carry)
    with torch.no_grad():
        model.temperature.fill_(chosen.temperature)
    return model


@dataclass(frozen=True)
class _Learnt:
    """The population's score, its comparisons in the subspace `basis`, and the covariance of people there."""

    score: Uniform
    log: PosteriorData
    basis: Tensor
    covariance: Tensor
    n_rows: int

    def at(self, carry: float) -> Bayes:
        """Everybody, where this share of the covariance carries over."""
        return _known(self.score, self.log, self.basis, population(carry * self.covariance), self.n_rows)


def _learnt(
    data: HeadData, chosen: Chosen, config: TrainConfig, n_rows: int, texts: Tensor, learns: Tensor | None = None
) -> _Learnt:
    alike = replace(config, users=replace(config.users, kind="uniform"))
    score = fit_average(data, chosen, alike, 1, texts, learns, tolerance=1e-7)
    assert isinstance(score, Uniform)
    pairs = data.pairs(texts) if learns is None else data.pairs(texts).take(learns)
    basis = directions(pairs, config.users.rank, score.embedding[0].detach())
    log = _judgements(score, pairs, basis)
    return _Learnt(score, log, basis, fit_prior(log, n_rows, _start(log)).covariance, n_rows)


@torch.no_grad()
def _known(score: Uniform, log: PosteriorData, basis: Tensor, prior: Prior, n_rows: int) -> Bayes:
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
def fit_text_prior(model: Bayes, pairs: PairFeatures, rows: Tensor, states: Tensor, places: Tensor) -> TextMap | None:
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
    model.text_prior = TextPrior(states.shape[1], len(model.prior), model.kept)
    root = found.root[:, -model.kept :]  # the strongest directions come last
    for buffer, numbers in zip(model.text_prior.buffers(), (mean, scale, found.weight, root), strict=True):
        buffer.copy_(numbers)
    model.set_posterior(rows, *model.text_prior(states[places]))
    finish_bayes(model, pairs.take(torch.isin(pairs.rows, rows).nonzero().squeeze(1)))
    return found


@torch.no_grad()
def finish_bayes(model: Bayes, pairs: PairFeatures) -> None:
    """The posteriors of everybody in `pairs`, who have not been judging before, from these judgements.

    Their rows hold what is known beforehand: nothing but what people are like at large, or what their text says.
    """
    known_before = model.known(torch.arange(model.n_rows, device=pairs.rows.device))[pairs.rows]
    _settle(model, pairs.take((~known_before).nonzero().squeeze(1)), population(model.prior))
    if model.text_prior is not None:
        narrower = model.prior - model.text_prior.factor @ model.text_prior.factor.T
        _settle(model, pairs.take(known_before.nonzero().squeeze(1)), Prior(model.means, narrower, model.prior))


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
    texts, axes = compact(pairs.texts)
    if texts.shape[1] < min(rank, d):
        texts, axes = pairs.texts, torch.eye(d)
    small, score = replace(pairs, texts=texts), score @ axes
    length = score.norm()
    first = score[:, None] / length if float(length) > 0.0 else score.new_zeros(len(score), 0)
    total = torch.zeros(len(score), len(score))
    for _, part in small.differences():
        rest = part - (part @ first) @ first.T
        total += rest.T @ rest
    _, vectors = torch.linalg.eigh(total)
    n = min(rank, d) - first.shape[1]
    return axes @ torch.cat([first, vectors[:, len(score) - n :].flip(1)], 1)


@torch.no_grad()
def _judgements(score: UserModel, pairs: PairFeatures, basis: Tensor) -> PosteriorData:
    """Comparisons in the subspace, with the logits that the population's head gives them."""
    margin = margins(score, pairs, generic=True)
    z = pairs.texts @ basis
    return PosteriorData(z, pairs.chosen, pairs.rejected, pairs.rows, pairs.p_chosen, pairs.weight, margin)


def _start(log: PosteriorData) -> float:
    return _SPREAD / float(log.differences().square().sum(1).mean())
