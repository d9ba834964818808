"""Users' own parts on top of the tuned uniform model, each weighted by what such parts proved to be worth."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prm.config import TrainConfig
from prm.io.progress import progress
from prm.training.heads.average import fit_average
from prm.training.heads.grid_search import HeadData, Search, Trial, head_states, scored
from prm.training.heads.objective import PairFeatures, curvature_of_earlier, margins
from prm.training.heads.ridge_offsets import OffsetProblem
from prm.training.heads.settings_choice import Chosen, choose, held_out_margins, near_best, near_trials, parts_of
from prm.users.kinds import Uniform
from prm.users.stack_model import Stack
from prm.users.user_weight import HeldOut, fit_weights, weight_at

_SCALE_VARIANCES = (0.0, 0.25)  # of the factors by which users scale the population's logits


def search_stack(data: HeadData, uniform: Search, config: TrainConfig, n_rows: int) -> tuple[Chosen, list[Trial]]:
    """Choose kernel, penalty and weights; returns the choice and one trial per kernel and penalty.

    The population's logit is that of the uniform model with the same kernel, averaged over its settings within one
    standard error of the best. Users' offsets from it are fitted with each penalty of `search.user_l2` on all folds
    but one, and the weight of an offset is learnt from how well others' offsets, from about as many comparisons,
    predicted the fold that was left out. Where they predict nothing the weight is 0, and the uniform model is left.
    A setting is judged on each fold with weights of the other folds; of those within one standard error of the best,
    the one that lets users add least is taken. Each fold is evaluated with what the other folds chose.
    """
    held_out = ~uniform.margins[0].isnan()
    tried = [_predict(data, uniform.of(kernel), config, n_rows, held_out) for kernel in config.kernels]
    results = [_Weighted(one, i, data) for one in tried for i in range(len(one.trials))]
    known = held_out.nonzero()[:, 0]
    trials = [result.trial(known) for result in results]

    def of_fold(others: Tensor, part: Tensor) -> Tensor:
        result = results[_best(results, trials, others)]
        return result.margin(result.weights(others))[part]

    margin = held_out_margins(of_fold, uniform.margins[0], data)
    best = _best(results, trials, known)
    nll, accuracy = scored(margin, data)
    chosen = choose(uniform.of(trials[best].kernel), data)
    chosen = replace(chosen, trials=[replace(t, user_l2=trials[best].user_l2) for t in chosen.trials], margin=margin)
    chosen = replace(chosen, validation_nll=nll, validation_accuracy=accuracy, weights=results[best].weights(known))
    return replace(chosen, scale_variance=trials[best].scale_variance), trials


@dataclass(frozen=True)
class _Predicted:
    """One kernel's held-out logits of the population [n], what users add [s, n], and training comparisons [n]."""

    trials: list[Trial]
    population: Tensor
    added: Tensor
    count: Tensor


def _predict(data: HeadData, uniform: Search, config: TrainConfig, n_rows: int, held_out: Tensor) -> _Predicted:
    started, uniform_choice = time.perf_counter(), choose(uniform, data)
    grid = [(user_l2, variance) for variance in _SCALE_VARIANCES for user_l2 in config.search.user_l2]
    population = torch.full((len(held_out),), float("nan"))
    added, count = population.repeat(len(grid), 1), torch.zeros_like(data.rows)
    name = f"fitting users ({uniform_choice.kernel})"
    for others, part in progress(list(parts_of(data, held_out)), desc=name, unit="fold"):
        train = (data.fold != data.fold[part[0], 0]).all(1).nonzero()[:, 0]
        chosen = replace(uniform_choice, trials=near_trials(uniform, data, others))
        texts = head_states(data, chosen.feature_spec, chosen.kernel, config, train)
        score = _fit_score(data, chosen, config, texts, train)
        pairs, rows = data.pairs(texts), data.rows[part]
        with torch.no_grad():
            population[part] = margins(score, pairs.take(part), generic=True)
        count[part] = torch.bincount(data.rows[train], minlength=n_rows)[rows]
        problem, z = _problem(score.embedding[0].detach(), pairs.take(train), n_rows), _differences(pairs.take(part))
        for i, (user_l2, variance) in enumerate(grid):
            added[i, part] = (problem.fit(user_l2, variance)[rows] * z).sum(1)
    seconds = round((time.perf_counter() - started) / len(grid), 3)
    settings = uniform_choice.feature_spec, uniform_choice.kernel, uniform_choice.l2
    trials = [Trial(*settings, user_l2, 0.0, 0.0, 0, seconds, scale_variance=v) for user_l2, v in grid]
    return _Predicted(trials, population, added, count)


@dataclass(frozen=True)
class _Weighted:
    """One setting's held-out logits, and weights fitted to them."""

    predicted: _Predicted
    index: int
    data: HeadData

    def weights(self, index: Tensor) -> Tensor:
        """The weights that the comparisons at `index` teach."""
        p, data = self.predicted, self.data
        every = HeldOut(p.population, p.added[self.index], p.count, data.rows, data.p_chosen, data.weight)
        return fit_weights(every.take(index))

    def margin(self, weights: Tensor) -> Tensor:
        """Weighted margins of all comparisons, [n]."""
        p = self.predicted
        return p.population + weight_at(weights, p.count) * p.added[self.index]

    def held_out(self, index: Tensor) -> Tensor:
        """Weighted margins [n] of the comparisons at `index`, each fold's weights from the others; NaN elsewhere."""
        margin = torch.full_like(self.predicted.population, float("nan"))
        margin[index] = self.predicted.population[index]
        return held_out_margins(lambda others, part: self.margin(self.weights(others))[part], margin, self.data)

    def trial(self, known: Tensor) -> Trial:
        """The setting with its scores on the comparisons at `known`."""
        nll, accuracy = scored(self.held_out(known), self.data)
        return replace(self.predicted.trials[self.index], validation_nll=nll, validation_accuracy=accuracy)


def _best(results: Sequence[_Weighted], trials: Sequence[Trial], index: Tensor) -> int:
    """The setting that lets users add least, of those near the best on the comparisons at `index` (`near_best`)."""
    found = Search(list(trials), torch.stack([result.held_out(index) for result in results]))
    near = near_best(found, results[0].data, index)
    return max(near, key=lambda i: (trials[i].user_l2, -trials[i].scale_variance))


def fit_stack(data: HeadData, chosen: Chosen, config: TrainConfig, n_rows: int, texts: Tensor) -> Stack:
    """The user model with all users, for the chosen settings; `texts`: head inputs of the distinct texts, [t, d]."""
    score = _fit_score(data, chosen, config, texts)
    model = Stack(n_rows, 1, texts.shape[1])
    with torch.no_grad():
        model.generic.copy_(score.embedding)
        model.weights.copy_(chosen.weights)
        model.penalties.copy_(torch.tensor([chosen.user_l2, chosen.scale_variance]))
    extend_stack(model, data.pairs(texts))
    return model


@torch.no_grad()
def extend_stack(model: Stack, pairs: PairFeatures) -> int:
    """Fit the offsets of the users in `pairs` to these comparisons, and count them for the offsets' weights.

    The penalty pulls to each user's offset before, which is 0 for a new user, as `fit_rows` does. All others stay the
    same to the bit. Returns the number of users.
    """
    user_l2, scale_variance = model.penalties.tolist()
    rows = torch.unique(pairs.rows)
    earlier = _Earlier(model, pairs)
    problem = _problem(model.generic[0], pairs, model.n_rows, earlier)
    model.offsets[rows, 0] += earlier.held(
        problem.fit(user_l2, scale_variance), torch.arange(model.n_rows, device=rows.device)
    )[rows]
    model.counts.add_(torch.bincount(pairs.rows, minlength=model.n_rows))
    return len(rows)


def _fit_score(
    data: HeadData, chosen: Chosen, config: TrainConfig, texts: Tensor, train: Tensor | None = None
) -> Uniform:
    """The population's head, fitted on the comparisons at `train`, or on all if not given."""
    uniform = replace(config, users=replace(config.users, kind="uniform"))
    score = fit_average(data, chosen, uniform, 1, texts, train, tolerance=1e-7)
    assert isinstance(score, Uniform)
    return score


class _Earlier:
    """The offsets before an update, which is held more firmly along them (`curvature_of_earlier`).

    With the penalty user_l2 (1 + curvature) along an offset, and user_l2 across it, an update is S x, where x has the
    penalty user_l2 in every direction: S shortens the part along the offset by the root of 1 + curvature.
    """

    def __init__(self, model: Stack, pairs: PairFeatures):
        z, self.offsets = _differences(pairs), model.offsets[:, 0]
        self.shift = (self.offsets[pairs.rows] * z).sum(1)
        margin = _logit(model.generic[0], pairs, z) + self.shift
        curvature = curvature_of_earlier(pairs, margin, self.shift, model.n_rows)
        self._part = 1.0 - (1.0 + curvature).rsqrt()
        self._directions = nn.functional.normalize(self.offsets, dim=1)

    def held(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """S x for vectors [n, d] of the users in `rows` [n]."""
        directions = self._directions[rows]
        return vectors - (self._part[rows] * (vectors * directions).sum(1))[:, None] * directions


def _problem(head: Tensor, pairs: PairFeatures, n_rows: int, earlier: _Earlier | None = None) -> OffsetProblem:
    """The fit of offsets from the head, [d], and from earlier offsets, which are part of the logit."""
    z = _differences(pairs)
    margin = _logit(head, pairs, z)
    if earlier is not None:
        margin, z = margin + earlier.shift, earlier.held(z, pairs.rows)
    return OffsetProblem(z, pairs.rows, margin, pairs.p_chosen, pairs.weight, head, n_rows)


def _logit(head: Tensor, pairs: PairFeatures, z: Tensor) -> Tensor:
    """The population's logit of each comparison, [n]."""
    margin = z @ head
    return margin if pairs.base is None else margin + pairs.base[pairs.chosen] - pairs.base[pairs.rejected]


def _differences(pairs: PairFeatures) -> Tensor:
    return torch.cat([chunk for _, chunk in pairs.differences()])
