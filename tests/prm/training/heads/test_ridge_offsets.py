"""Users' offsets against a general minimiser in float64, in both coordinates, and apart from each other."""

import pytest
import torch
from torch.nn import functional as F

from prm.training.heads.ridge_offsets import OffsetProblem

N_ROWS = 5


def comparisons(n: int, dim: int) -> dict[str, torch.Tensor]:
    """Users 1 to 3, the first with most; labels and weights of all kinds; row 4 has nothing."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.where(torch.arange(n) < n // 2, 1, 2 + torch.arange(n) % 2)
    z, head = torch.randn(n, dim, generator=draw), torch.randn(dim, generator=draw)
    return {
        "z": z,
        "rows": rows,
        "margin": z @ head + 0.3 * torch.randn(n, generator=draw),
        "p_chosen": torch.rand(n, generator=draw),
        "weight": 0.5 + torch.rand(n, generator=draw),
        "head": head,
    }


def direct(c: dict[str, torch.Tensor], user_l2: float, scale_variance: float) -> torch.Tensor:
    """The same objective of all users together, by L-BFGS."""
    z, margin, p, weight, head = (c[name].double() for name in ("z", "margin", "p_chosen", "weight", "head"))
    offset = torch.zeros(N_ROWS, z.shape[1], dtype=torch.float64, requires_grad=True)
    factor = torch.zeros(N_ROWS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [offset, factor], max_iter=5000, tolerance_grad=1e-10, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scale = factor if scale_variance > 0.0 else 0.0 * factor
        logit = margin + (offset[c["rows"]] * z).sum(1) + scale[c["rows"]] * (z @ head)
        value = (weight * (-p * F.logsigmoid(logit) - (1.0 - p) * F.logsigmoid(-logit))).sum()
        value = value + 0.5 * user_l2 * offset.square().sum() + 0.5 * factor.square().sum() / (scale_variance or 1.0)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return (offset + factor[:, None] * head).detach()


@pytest.mark.parametrize("dim", [4, 200])
@pytest.mark.parametrize("scale_variance", [0.0, 0.5])
def test_offsets_are_those_of_a_general_minimiser(dim: int, scale_variance: float) -> None:
    """With fewer comparisons than coordinates, and with more; strong penalties and weak ones."""
    c = comparisons(90, dim)
    problem = OffsetProblem(**c, n_rows=N_ROWS)
    for user_l2 in (100.0, 0.5):
        found = problem.fit(user_l2, scale_variance)
        torch.testing.assert_close(found.double(), direct(c, user_l2, scale_variance), atol=2e-4, rtol=2e-3)
        assert not found[[0, 4]].any()


def test_a_user_is_fitted_to_their_own_comparisons_alone() -> None:
    """The order of comparisons and what others say change nothing, nor does a comparison without weight."""
    c = comparisons(60, 7)
    everyone = OffsetProblem(**c, n_rows=N_ROWS).fit(3.0, 0.2)
    kept = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    kept = kept[c["rows"][kept] == 2]
    alone = {name: value if name == "head" else value[kept] for name, value in c.items()}
    torch.testing.assert_close(
        OffsetProblem(**alone, n_rows=N_ROWS).fit(3.0, 0.2)[2], everyone[2], atol=1e-5, rtol=1e-4
    )
    c["weight"][c["rows"] == 1] = 0.0
    silent = OffsetProblem(**c, n_rows=N_ROWS).fit(3.0, 0.2)
    assert not silent[1].any()
    torch.testing.assert_close(silent[2], everyone[2], atol=1e-5, rtol=1e-4)
