"""Heads fitted on features: by hand, against an independent solver, and the search over settings."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from prm.config import FeatureSpec, SearchConfig, TrainConfig, UserConfig
from prm.training.heads.grid_search import HeadData, new_model, penalties, search
from prm.training.heads.objective import (
    PairFeatures,
    Penalty,
    curvature_of_earlier,
    fit_head,
    fit_rows,
    margins,
    objective,
)
from prm.training.user_fit import fit_heads
from prm.users.kinds import Cluster, Individual, LowRank, Separate, Uniform
from prm.users.stack_model import Stack
from prm.users.user_model import UserModel


def pairs_of(n: int = 60, d: int = 3, people: int = 2, seed: int = 0) -> PairFeatures:
    """Noisy labels by opposed people along the first axis."""
    g = torch.Generator().manual_seed(seed)
    texts = torch.randn(2 * n, d, generator=g)
    rows = torch.arange(n) % people + 1
    sign = 1.0 - 2.0 * (rows % 2).float()
    liked = sign * (texts[:n, 0] - texts[n:, 0]) + 0.5 * torch.randn(n, generator=g) > 0
    chosen = torch.where(liked, torch.arange(n), torch.arange(n, 2 * n))
    rejected = torch.where(liked, torch.arange(n, 2 * n), torch.arange(n))
    p = 0.75 + 0.25 * torch.rand(n, generator=g)
    return PairFeatures(texts, chosen, rejected, rows, p, 0.5 + torch.rand(n, generator=g))


def test_objective_by_hand() -> None:
    """One pair, h = (1, 0) against (0, 1), e_0 = (1, 0), o_1 = (1, -1): margins 3 and 1, weight 2."""
    model = Individual(2, 1, 2)
    model.generic.data = torch.tensor([[1.0, 0.0]])
    model.offsets.data[1] = torch.tensor([[1.0, -1.0]])
    pair = PairFeatures(
        torch.eye(2), torch.tensor([0]), torch.tensor([1]), torch.tensor([1]), torch.ones(1), torch.tensor([2.0])
    )
    nll = [math.log1p(math.exp(-m)) for m in (3.0, 1.0)]
    expected = 0.25 * nll[0] + 0.75 * nll[1] + 0.5 * (10.0 * 1.0 + 20.0 * 2.0) / 2.0
    found = objective(model, pair, alpha=0.25, penalty=Penalty(10.0, 20.0))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert margins(model, pair).tolist() == [3.0]
    assert margins(model, pair, generic=True).tolist() == [1.0]


@pytest.mark.parametrize(("alpha", "clusters"), [(0.0, 0), (0.5, 0), (1.0, 0), (0.5, 3)])
def test_fit_equals_scipy_on_the_same_objective(alpha: float, clusters: int) -> None:
    """Individuals, and clusters with as many centres as axes: the same embeddings to choose from, the same penalty."""
    pairs = pairs_of()
    penalty = Penalty(2.0, 5.0)
    users = UserConfig("cluster", clusters=clusters) if clusters else UserConfig()
    model = new_model(TrainConfig(users=users), 3, 3)
    fit_head(model, pairs, alpha, penalty)

    x = (pairs.texts[pairs.chosen] - pairs.texts[pairs.rejected]).double().numpy()
    rows, p, w = pairs.rows.numpy(), pairs.p_chosen.double().numpy(), pairs.weight.double().numpy()

    def loss(flat: np.ndarray) -> float:
        e0, offsets = flat[:3], flat[3:].reshape(2, 3)
        user, generic = (x * (e0 + offsets[rows - 1])).sum(1), x @ e0
        nll = [p * np.logaddexp(0, -m) + (1 - p) * np.logaddexp(0, m) for m in (user, generic)]
        total = ((alpha * nll[0] + (1 - alpha) * nll[1]) * w).sum()
        return float((total + 0.5 * (2.0 * e0 @ e0 + 5.0 * (offsets**2).sum())) / w.sum())

    best = minimize(loss, np.zeros(9), method="BFGS", options={"gtol": 1e-9})
    assert float(objective(model, pairs, alpha, penalty)) == pytest.approx(best.fun, abs=1e-6)
    e = model(torch.arange(3))[:, 0].detach()
    np.testing.assert_allclose(torch.cat([e[0], (e[1:] - e[0]).flatten()]).numpy(), best.x, atol=2e-3)


def one_users(z: torch.Tensor) -> PairFeatures:
    """Comparisons of the user in row 1, whose differences of hidden states are z [n, d]."""
    n = len(z)
    texts, ones = torch.cat([z, torch.zeros_like(z[:1])]), torch.ones(n)
    return PairFeatures(texts, torch.arange(n), torch.full((n,), n), ones.long(), ones, ones)


def test_the_curvature_of_comparisons_that_are_not_at_hand() -> None:
    """Five equal ones, margin m: 5 p (1 - p) m^2 / |o|^2, from the offset and one comparison like them."""
    model, z = Individual(2, 1, 2), torch.tensor([[3.0, 4.0]])
    fit_rows(model, one_users(z.expand(5, 2)), 0.2)
    offset = model.offsets[1, 0].detach()
    m = float(z[0] @ offset)
    p = 1.0 / (1.0 + math.exp(-m))
    shift = torch.tensor([-m])
    found = 0.2 * curvature_of_earlier(one_users(-z), shift, shift, 2)
    assert found.tolist() == pytest.approx([0.0, 5.0 * p * (1.0 - p) * m * m / float(offset @ offset)], rel=1e-3)


def planted(n: int, generator: torch.Generator) -> torch.Tensor:
    """Differences [n, 8] of which a user likes the first axis."""
    z = 0.1 * torch.randn(n, 8, generator=generator)
    z[:, 0] += 1.0 + 0.3 * torch.randn(n, generator=generator)
    return z


@pytest.mark.parametrize("kind", ["individual", "separate", "cluster", "low_rank", "stack"])
def test_one_comparison_to_the_contrary_does_not_reverse_thirty(kind: str) -> None:
    """It moves the user about as far as a fit to all 31 would."""
    g = torch.Generator().manual_seed(0)
    before, other, test = planted(30, g), planted(1, g), planted(200, g)

    def new() -> UserModel:
        made: UserModel
        if kind == "stack":
            made = Stack(2, 1, 8)
            made.weights.fill_(1.0)
            made.penalties.copy_(torch.tensor([0.1, 0.0]))
        else:
            made = (Separate if kind == "separate" else Individual)(2, 1, 8)
        if kind == "cluster":
            made = Cluster(2, 1, 8, 8, softmax=False)
            made.centres.data[:, 0], made.weights.data[:] = torch.eye(8), 0.0
        if kind == "low_rank":
            made = LowRank(2, 1, 8, 8)
            made.basis.data[:, 0] = torch.eye(8)
        return made

    def chance(model: UserModel) -> float:
        """Of what the user likes, on average over new comparisons."""
        return float(margins(model, one_users(test)).sigmoid().mean())

    updated, refitted, new_users = new(), new(), torch.tensor([False, True])
    fit_heads(updated, one_users(before), new_users, 0.1)
    sure = chance(updated)
    fit_heads(updated, one_users(-other), ~new_users, 0.1)
    fit_heads(refitted, one_users(torch.cat([before, -other])), new_users, 0.1)
    assert sure > 0.95
    assert chance(updated) == pytest.approx(chance(refitted), abs=0.04)


def test_strangers_to_clusters_get_the_uniform_head_if_people_must_be_alike() -> None:
    pairs, uniform = pairs_of(people=6), Uniform(7, 1, 3)
    model = new_model(TrainConfig(users=UserConfig("cluster", clusters=2)), 7, 3)
    fit_head(uniform, pairs, 0.5, Penalty(2.0, 0.0))
    fit_head(model, pairs, 0.5, Penalty(2.0, 1e4))
    torch.testing.assert_close(model(torch.arange(7)), uniform(torch.arange(7)), atol=2e-3, rtol=0)


def test_uniform_is_one_term_at_any_alpha() -> None:
    pairs = pairs_of()
    model = Uniform(3, 1, 3)
    model.embedding.data.normal_()
    values = [float(objective(model, pairs, alpha, Penalty(1.0, 1.0))) for alpha in (0.0, 0.3, 1.0)]
    assert values[0] == values[1] == values[2]


def never() -> Iterator[tuple[slice, torch.Tensor]]:
    """Differences that nobody may ask for."""
    raise AssertionError("heads were gathered")
    yield


@pytest.mark.parametrize("share", [0, 1000])
@pytest.mark.parametrize("model", [Individual(3, 1, 3), Cluster(3, 1, 3, 2, softmax=True), LowRank(3, 1, 3, 2)])
def test_a_table_of_rewards_and_heads_gathered_per_pair_agree(
    share: int, model: UserModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ways to the same margins; which is taken depends on people times texts for each pair."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    pairs = pairs_of()
    expected = torch.stack(
        [
            model(row[None])[0, 0] @ (pairs.texts[c] - pairs.texts[r])
            for row, c, r in zip(pairs.rows, pairs.chosen, pairs.rejected, strict=True)
        ]
    )
    monkeypatch.setattr("prm.training.heads.objective._TABLE_PER_PAIR", share)
    found = margins(model, pairs, differences=never() if share else None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, model = pairs_of(), Individual(3, 1, 3)
    whole = objective(model, pairs, 0.5, Penalty(1.0, 1.0))
    monkeypatch.setattr("prm.training.heads.objective._TABLE_PER_PAIR", 0)
    monkeypatch.setattr("prm.training.heads.objective._CHUNK", 7)
    torch.testing.assert_close(objective(model, pairs, 0.5, Penalty(1.0, 1.0)), whole)


@pytest.mark.parametrize("model", [Separate(3, 1, 3), Cluster(3, 1, 3, 2, softmax=False)])
def test_alpha_1_makes_the_unknown_user_the_mean_of_the_trained(model: Separate | Cluster) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    fit_head(model, pairs_of(), 1.0, Penalty(1.0, 1.0))
    everyone = model(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(everyone[0], everyone[1:].mean(0))


def test_uniform_gets_as_many_settings_as_the_personal_model() -> None:
    config = TrainConfig()
    personal = penalties(config)
    config.users = UserConfig("uniform")
    uniform = penalties(config)
    assert len(personal) == len(uniform) == 12
    assert len(uniform) * 2 * len(config.search.poolings) >= 24  # with two depths
    assert {min(p.l2 for p in uniform), max(p.l2 for p in uniform)} == {10.0, 10000.0}


def same_fold(fold: torch.Tensor) -> torch.Tensor:
    """Both answers of a comparison in one fold, [n, 2]."""
    return torch.stack([fold, fold], 1)


def test_search_judges_on_what_it_did_not_fit() -> None:
    """Labels are coin flips: an unpenalised head fits them, but held out it must do no better than log 2."""
    g = torch.Generator().manual_seed(0)
    n, d = 40, 30
    features: dict[FeatureSpec, torch.Tensor] = {((1, "last"),): torch.randn(2 * n, d, generator=g)}
    flips = torch.rand(n, generator=g) < 0.5
    chosen = torch.where(flips, torch.arange(n), torch.arange(n, 2 * n))
    rejected = torch.where(flips, torch.arange(n, 2 * n), torch.arange(n))
    data = HeadData(
        features,
        chosen,
        rejected,
        torch.ones(n, dtype=torch.long),
        torch.ones(n),
        torch.ones(n),
        same_fold(torch.arange(n) % 4),
    )
    config = TrainConfig(search=SearchConfig(l2=[0.01, 1e5], user_l2=[1e5]))
    loose, tight = search(data, config, n_rows=2).trials
    assert loose.validation_nll > 1.0
    assert tight.validation_nll == pytest.approx(math.log(2), abs=0.02)


def test_a_user_with_no_comparison_left_is_scored_as_an_unknown_user() -> None:
    """Person 2 stands in fold 1 alone: there the generic head speaks, which person 1 has taught to like axis 0."""
    texts = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    n = 12
    rows = torch.tensor([1] * 8 + [2] * 4)
    fold = torch.tensor([0] * 4 + [2] * 4 + [1] * 4)
    chosen, rejected = torch.tensor([0] * 8 + [1] * 4), torch.tensor([1] * 8 + [0] * 4)
    data = HeadData({((1, "last"),): texts}, chosen, rejected, rows, torch.ones(n), torch.ones(n), same_fold(fold))
    config = TrainConfig(search=SearchConfig(l2=[0.1], user_l2=[0.1]), users=UserConfig(generic=False))
    trial = search(data, config, n_rows=3).trials[0]
    assert trial.validation_accuracy == pytest.approx(8 / 12)


def test_a_comparison_between_two_folds_neither_trains_for_them_nor_validates() -> None:
    """Those within fold 0 and within fold 1 like axis 0; those between would teach, and judge, the contrary."""
    texts = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    within, between = [[0, 0]] * 6 + [[1, 1]] * 6, [[0, 1]] * 20 + [[1, 0]] * 20
    fold = torch.tensor(within + between)
    n = len(fold)
    wrong = torch.tensor([0] * len(within) + [1] * len(between))
    rows, ones = torch.ones(n, dtype=torch.long), torch.ones(n)
    config = TrainConfig(search=SearchConfig(l2=[0.1], user_l2=[0.1]))
    data = HeadData({((1, "last"),): texts}, wrong, 1 - wrong, rows, ones, ones, fold)
    (trial,) = search(data, config, n_rows=2).trials
    assert trial.validation_accuracy == 1.0
    assert trial.validation_nll < math.log(2)


def test_fold_minus_one_always_trains_and_one_half_in_it_never() -> None:
    """As `search.folds: 1` marks them: -1 learns, 0 validates, and between both is neither."""
    texts = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    fold = torch.tensor([[-1, -1]] * 6 + [[0, 0]] * 3 + [[-1, 0]] * 20)
    wrong = torch.tensor([0] * 9 + [1] * 20)
    rows, ones = torch.ones(29, dtype=torch.long), torch.ones(29)
    config = TrainConfig(search=SearchConfig(l2=[0.1], user_l2=[0.1]))
    data = HeadData({((1, "last"),): texts}, wrong, 1 - wrong, rows, ones, ones, fold)
    (trial,) = search(data, config, n_rows=2).trials
    assert trial.validation_accuracy == 1.0
