"""The fast path's pieces: rows fitted from where they are, rewards that were there before, folds of a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from prm.config import DataConfig, SearchConfig, TrainConfig
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.training.heads.grid_search import HeadData, compact, search
from prm.training.heads.objective import PairFeatures, Penalty, fit_head, fit_rows, margins
from prm.training.linear_heads import folds_of
from prm.users.kinds import Cluster, Individual, Separate
from prm.users.user_model import UserModel
from tests.planted import opposed_people

TEXTS = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])


def pairs_of(rows: list[int], base: torch.Tensor | None = None) -> PairFeatures:
    """Each person prefers (1, 0) to (0, 0)."""
    n = len(rows)
    zero, one = torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.long)
    return PairFeatures(TEXTS, zero, one, torch.tensor(rows), torch.ones(n), torch.ones(n), base)


def test_margins_add_what_texts_had_before() -> None:
    """Head (2, 0): margin 2; the texts had 0.5 and 3 before: 2 + 0.5 - 3."""
    model = Individual(2, 1, 2)
    model.generic.data[:] = torch.tensor([2.0, 0.0])
    base = torch.tensor([0.5, 3.0, 9.0])
    for generic in (False, True):
        assert margins(model, pairs_of([1]), generic).tolist() == [2.0]
        assert margins(model, pairs_of([1], base), generic).tolist() == [-0.5]
    data = HeadData({}, *pairs_fields(pairs_of([1])), torch.zeros(1, 2), base)
    assert data.pairs(TEXTS).base is base


def pairs_fields(p: PairFeatures) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return p.chosen, p.rejected, p.rows, p.p_chosen, p.weight


def test_a_head_on_top_of_a_good_reward_has_little_to_add() -> None:
    bare, topped = Individual(2, 1, 2), Individual(2, 1, 2)
    fit_head(bare, pairs_of([1, 1]), 0.5, Penalty(0.1, 0.1))
    fit_head(topped, pairs_of([1, 1], torch.tensor([6.0, 0.0, 0.0])), 0.5, Penalty(0.1, 0.1))
    assert 0 < topped.generic[0, 0] < 0.1 * bare.generic[0, 0]


def test_rows_are_fitted_from_where_they_are() -> None:
    """Two comparisons that add x to e_0 = 0.5, which is left alone, of a user whose offset o was (0.3, 7).

    (x, y) minimises 2 log(1 + exp(-x - 0.5)) + 0.5 l2 |d|^2 + 0.5 l2 c <o, d>^2 with d = (x, y) - o and, of the
    comparisons before, c = sigmoid(0.5 + 0.3) 0.3 / |o|^2.
    """
    model = Individual(3, 1, 2)
    model.generic.data[0, 0] = 0.5
    model.offsets.data[1, 0], model.offsets.data[2, 0] = torch.tensor([0.3, 7.0]), torch.tensor([-4.0, 1.0])
    before = model.offsets.detach().clone()
    fit_rows(model, pairs_of([1, 1]), user_l2=1.5)

    def by_hand(found: NDArray[np.float64]) -> float:
        moved = found - np.array([0.3, 7.0])
        earlier = 0.3 / (1 + np.exp(-0.8)) / (0.3**2 + 7.0**2) * (0.3 * moved[0] + 7.0 * moved[1]) ** 2
        return float(2 * np.log1p(np.exp(-found[0] - 0.5)) + 0.75 * (moved @ moved + earlier))

    expected = minimize(by_hand, [0.3, 7.0], tol=1e-10).x
    assert model.offsets[1, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert abs(expected[1] - 7.0) > 1e-3
    assert torch.equal(model.offsets[[0, 2]], before[[0, 2]])
    assert model.generic[0].tolist() == [0.5, 0.0]


def test_clusters_fit_a_row_as_an_offset_from_where_it_was() -> None:
    """As many centres as axes: the same embedding, in whatever units its weights are."""
    individual, cluster = Individual(3, 1, 2), Cluster(3, 1, 2, 2, softmax=False)
    with torch.no_grad():
        individual.offsets[1, 0] = torch.tensor([0.3, 7.0])
        cluster.centres[:, 0] = torch.tensor([[0.1, 0.0], [0.1, 2.0]])
        cluster.weights[1] = torch.linalg.solve(cluster.centres[:, 0].T, individual.offsets[1, 0])
    for model in (individual, cluster):
        fit_rows(model, pairs_of([1, 1]), user_l2=1.5)
    torch.testing.assert_close(cluster(torch.tensor([1])), individual(torch.tensor([1])), atol=3e-3, rtol=0)


@pytest.mark.parametrize("model", [Separate(3, 1, 2), Cluster(3, 1, 2, 2, False), Cluster(3, 1, 2, 2, True)])
def test_a_strong_penalty_holds_rows_where_they_were(model: UserModel) -> None:
    """Not at 0, where the penalty of a first fit holds them; and nothing shared moves at all."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit_rows(model, pairs_of([2]), user_l2=1e6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-4)
        if any(parameter is shared for shared in model.shared()):
            assert torch.equal(parameter, before[name])
    fit_rows(model, pairs_of([2] * 50), user_l2=0.1)
    own = model.per_row()[0]
    name = next(name for name, p in model.named_parameters() if p is own)
    assert not torch.equal(own[2], before[name][2])
    assert torch.equal(own[:2], before[name][:2])


def test_folds_of_a_run() -> None:
    """With one fold, a part validates and the rest always trains; answers between two parts are in neither."""
    log = opposed_people(30, 0, people=2)
    config = TrainConfig(data=DataConfig(path="x", validation_fraction=0.2), search=SearchConfig(folds=3))
    fold = folds_of(config, log)
    assert (fold[:, 0] == fold[:, 1]).all()
    assert sorted(set(fold.flatten().tolist())) == [0, 1, 2]
    assert (fold[::2] == fold[1::2]).all()  # both people's view of a prompt
    one = replace(config, search=SearchConfig(folds=1))
    fold = folds_of(one, log)
    assert set(map(tuple, fold.tolist())) == {(-1, -1), (0, 0)}
    assert int((fold[:, 0] == 0).sum()) == 12  # a fifth of 30 prompts, twice
    answers = [f"answer {i}" for i in range(20)]
    log = [Comparison("a", "q", a, b) for a in answers for b in answers if a < b]
    one.data.holdout_by = "response"
    fold = folds_of(one, log)
    assert set(map(tuple, fold.tolist())) == {(-1, -1), (0, 0), (-1, 0)}
    validates = {x for c, f in zip(log, fold.tolist(), strict=True) if f == [0, 0] for x in (c.chosen, c.rejected)}
    trains = {x for c, f in zip(log, fold.tolist(), strict=True) if f == [-1, -1] for x in (c.chosen, c.rejected)}
    assert len(validates) == 4
    assert len(trains) == 16
    assert not validates & trains


@pytest.mark.parametrize("make", [Individual, Separate])
def test_few_texts_in_few_coordinates_give_the_same_margins(make: type[UserModel]) -> None:
    """Eight texts of 40 coordinates."""
    torch.manual_seed(0)
    texts = torch.randn(8, 40) + 1.0
    small, axes = compact(texts)
    torch.testing.assert_close(small @ axes.T, texts, rtol=1e-4, atol=1e-4)
    assert small.shape == (8, 8)
    torch.testing.assert_close(small @ small.T, texts @ texts.T, rtol=1e-4, atol=1e-4)
    chosen, rows = torch.randint(8, (60,)), torch.randint(1, 4, (60,))
    rejected = (chosen + torch.randint(1, 8, (60,))) % 8
    found = []
    for x in (texts, small):
        pairs = PairFeatures(x, chosen, rejected, rows, torch.full((60,), 0.9), torch.ones(60))
        model = make(4, 1, x.shape[1])
        fit_head(model, pairs, 0.5, Penalty(2.0, 1.0))
        found.append(margins(model, pairs))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-2)  # as near as both come to the optimum
    assert found[0].abs().mean() > 0.1


def test_folds_that_hold_nothing_out_are_passed_over() -> None:
    """Two judgements each, in time: the stretches are 0 and 2. By answer, pairs that share none straddle every fold."""
    log = [replace(c, time=float(i)) for i, c in enumerate(opposed_people(2, 0, people=2))]
    config = TrainConfig(
        data=DataConfig(path="x", holdout_by="time"), search=SearchConfig(folds=4, l2=[1.0], user_l2=[1.0])
    )
    fold = folds_of(config, log)
    assert set(fold.flatten().tolist()) == {0, 2}
    pairs = pairs_of([1, 2, 1, 2])
    data = HeadData({((1, "last"),): TEXTS}, *pairs_fields(pairs), fold)
    (trial,) = search(data, config, 3).trials
    assert trial.validation_nll > 0
    nowhere = HeadData({((1, "last"),): TEXTS}, *pairs_fields(pairs), torch.tensor([[0, 1]] * 4))
    with pytest.raises(PrmError, match=r"search\.folds"):
        search(nowhere, config, 3)
