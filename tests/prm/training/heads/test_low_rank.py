"""Low rank: planted directions are found, new people are fitted in them, and the two penalties are a nuclear norm."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from prm.config import TrainConfig, UserConfig
from prm.training.heads.grid_search import new_model
from prm.training.heads.objective import PairFeatures, Penalty, fit_head, fit_rows, margins
from prm.users.kinds import LowRank

DIM = 10


def planted(people: int, each: int, seed: int = 0, first: int = 1) -> tuple[PairFeatures, torch.Tensor]:
    """People whose heads are e_0 + w_i b, and b; labels are drawn."""
    draw = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(9)))[0]
    generic, b = axes[:, 0], axes[:, 1]
    rows = torch.arange(people * each) % people
    weight = 2.5 * torch.randn(people, generator=draw)
    texts = torch.randn(2 * len(rows), DIM, generator=draw)
    z = texts[: len(rows)] - texts[len(rows) :]
    yes = torch.rand(len(rows), generator=draw) < torch.sigmoid(z @ generic + weight[rows] * (z @ b))
    one, other = torch.arange(len(rows)), torch.arange(len(rows), 2 * len(rows))
    chosen, rejected = torch.where(yes, one, other), torch.where(yes, other, one)
    ones = torch.ones(len(rows))
    return PairFeatures(texts, chosen, rejected, rows + first, ones, ones), b


def fitted(pairs: PairFeatures, user_l2: float, rank: int = 3) -> LowRank:
    model = new_model(TrainConfig(users=UserConfig("low_rank", rank=rank)), int(pairs.rows.max()) + 1, DIM)
    assert isinstance(model, LowRank)
    fit_head(model, pairs, 1.0, Penalty(1.0, user_l2))
    return model


def test_the_direction_in_which_people_differ_is_found() -> None:
    """Forty people with 25 comparisons each: offsets lie along the planted direction, and beat heads of one's own."""
    pairs, b = planted(40, 25)
    model = fitted(pairs, 4.0)
    offsets = (model(torch.arange(1, 41))[:, 0] - model.generic[0]).detach()
    _, size, axes = torch.linalg.svd(offsets, full_matrices=False)
    assert abs(float(axes[0] @ b)) > 0.95
    assert float(size[0]) > 3.0 * float(size[1])
    with torch.no_grad():
        model.weights[0] = 3.0  # trained by nothing, and without effect
    assert torch.equal(model(torch.zeros(1, dtype=torch.long))[0], model.generic)


def test_a_new_person_is_fitted_in_the_shared_directions_as_by_a_direct_minimiser() -> None:
    model = fitted(planted(40, 25)[0], 4.0)
    new = planted(1, 12, seed=5, first=3)[0]
    basis, generic = model.basis[:, 0].detach().double().numpy(), model.generic[0].detach().double().numpy()
    z = (new.texts[new.chosen] - new.texts[new.rejected]).double().numpy()
    with torch.no_grad():
        model.weights[3] = 0.0
    others = model.weights.detach().clone()
    fit_rows(model, new, 4.0)

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -(z @ generic + z @ basis.T @ w)).sum() + 2.0 * w @ w)

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(model.weights[3].detach().numpy(), best.x, atol=2e-3)
    others[3] = model.weights[3].detach()
    assert torch.equal(model.weights, others)


def test_both_penalties_are_one_on_the_nuclear_norm() -> None:
    """With basis and weights free, only the product of the penalties counts: a quarter of one, four times the other."""
    pairs = planted(12, 30)[0]
    heads = []
    for l2, user_l2 in ((2.0, 8.0), (8.0, 2.0)):
        model = new_model(TrainConfig(users=UserConfig("low_rank", rank=4)), 13, DIM)
        assert isinstance(model, LowRank)
        model.generic.requires_grad_(False)  # its own penalty differs between the two
        fit_head(model, pairs, 1.0, Penalty(l2, user_l2), tolerance=1e-12)
        heads.append(margins(model, pairs).detach())
    torch.testing.assert_close(heads[0], heads[1], atol=0.02, rtol=0.02)
    assert float(heads[0].abs().max()) > 1.0


@pytest.mark.parametrize("user_l2", [1e5])
def test_a_strong_penalty_leaves_the_generic_head(user_l2: float) -> None:
    pairs = planted(8, 20)[0]
    model = fitted(pairs, user_l2)
    torch.testing.assert_close(margins(model, pairs), margins(model, pairs, generic=True), atol=1e-3, rtol=0)
