"""A stack: planted people are followed, those who agree are left the uniform model, and new people join it."""

from dataclasses import replace

import pytest
import torch

from prm.config import SearchConfig, TrainConfig, UserConfig
from prm.training.heads.average import fit_average
from prm.training.heads.grid_search import HeadData, Search, head_states, search
from prm.training.heads.settings_choice import choose
from prm.training.heads.stack_fit import extend_stack, fit_stack, search_stack
from prm.training.user_fit import fit_heads
from prm.users.stack_model import Stack
from prm.users.user_weight import weight_at

READ = ((1, "mean"),)
N_ROWS = 17


def log_of(differ: float, each: int = 60, seed: int = 0) -> HeadData:
    """Sixteen people over 80 texts: a taste that all share, and one of each by `differ`; four folds."""
    draw = torch.Generator().manual_seed(seed)
    texts, n = torch.randn(80, 6, generator=draw), (N_ROWS - 1) * each
    a = torch.randint(80, (n,), generator=draw)
    b = (a + 1 + torch.randint(79, (n,), generator=draw)) % 80
    rows = torch.arange(n) % (N_ROWS - 1) + 1
    own = differ * torch.randn(N_ROWS, 6, generator=torch.Generator().manual_seed(1))
    logit = ((texts[a] - texts[b]) * (torch.eye(6)[0] + own[rows])).sum(1)
    yes = torch.rand(n, generator=draw) < torch.sigmoid(logit)
    fold = torch.arange(n) // (N_ROWS - 1) % 4
    ones = torch.ones(n)
    return HeadData(
        {READ: texts}, torch.where(yes, a, b), torch.where(yes, b, a), rows, ones, ones, torch.stack([fold, fold], 1)
    )


CONFIG = TrainConfig(
    users=UserConfig("stack"), search=SearchConfig(folds=4, l2=[1.0, 10.0], user_l2=[1.0, 10.0, 100.0])
)


def uniform_of(data: HeadData) -> Search:
    return search(data, replace(CONFIG.of_kind("uniform"), search=replace(CONFIG.search, user_l2=[1.0])), 1)


def stack_of(data: HeadData) -> tuple[Stack, torch.Tensor]:
    chosen, _ = search_stack(data, uniform_of(data), CONFIG, N_ROWS)
    texts = head_states(data, chosen.feature_spec, chosen.kernel, CONFIG)
    return fit_stack(data, chosen, CONFIG, N_ROWS, texts), texts


def test_people_who_differ_are_followed() -> None:
    data = log_of(1.0)
    uniform = uniform_of(data)
    chosen, trials = search_stack(data, uniform, CONFIG, N_ROWS)
    assert chosen.validation_nll < choose(uniform, data).validation_nll - 0.05
    assert min(trial.validation_nll for trial in trials) == pytest.approx(chosen.validation_nll, abs=0.01)
    assert float(weight_at(chosen.weights, torch.tensor([60]))) > 0.6


def test_people_who_agree_are_left_the_uniform_model() -> None:
    """Weights near 0, and held out next to nothing is lost; without users the generic user is the uniform model."""
    data = log_of(0.0)
    uniform = uniform_of(data)
    chosen, _ = search_stack(data, uniform, CONFIG, N_ROWS)
    assert float(weight_at(chosen.weights, torch.tensor([60]))) < 0.15
    assert chosen.validation_nll < choose(uniform, data).validation_nll + 0.002
    model, texts = stack_of(data)
    head = fit_average(data, chosen, CONFIG.of_kind("uniform"), 1, texts, tolerance=1e-7)
    torch.testing.assert_close(model(torch.zeros(1, dtype=torch.long))[0], head(torch.zeros(1, dtype=torch.long))[0])


def test_new_people_join_as_those_who_were_there() -> None:
    """A person taken out and put back has the head and weight of one who stayed; all others stay to the bit."""
    data = log_of(1.0)
    model, texts = stack_of(data)
    pairs, row = data.pairs(texts), 3
    theirs = pairs.take((pairs.rows == row).nonzero()[:, 0])
    expected, before = model(torch.tensor([row])).clone(), model(torch.arange(N_ROWS)).clone()
    model.forget_row(row)
    assert torch.equal(model(torch.tensor([row]))[0], model.generic)
    fit_heads(model, theirs, torch.ones(N_ROWS, dtype=torch.bool), 0.0)
    torch.testing.assert_close(model(torch.tensor([row])), expected, atol=1e-4, rtol=1e-3)
    others = torch.arange(N_ROWS) != row
    assert torch.equal(model(torch.arange(N_ROWS))[others], before[others])
    assert float(model.counts[row]) == len(theirs)
    first = model.offsets[row, 0].clone()
    extend_stack(model, theirs)
    assert float(model.counts[row]) == 2 * len(theirs)
    # once more: the penalty pulls to the first offset, along it more firmly, and the gradient of the loss is its pull
    z, head = texts[theirs.chosen] - texts[theirs.rejected], model.generic[0]
    user_l2, scale_variance = model.penalties.tolist()
    curvature = (torch.sigmoid((z @ (head + first)).abs()) * (z @ first).abs()).mean()
    covariance = torch.eye(len(first)) / user_l2 + scale_variance * torch.outer(head, head)
    along = torch.outer(first, first) / first.square().sum()
    shorter = torch.eye(len(first)) - (1.0 - (1.0 + curvature) ** -0.5) * along
    residual = 1.0 - torch.sigmoid(z @ (head + model.offsets[row, 0]))
    moved = shorter @ covariance @ shorter @ (residual @ z)
    torch.testing.assert_close(model.offsets[row, 0] - first, moved, atol=1e-4, rtol=1e-3)
