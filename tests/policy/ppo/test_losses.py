"""PPO's sums by hand."""

import math

import pytest
import torch
from torch import tensor

from policy.ppo.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    moments,
    positive_kl_estimate,
    variance,
    whiten,
)

MASK = tensor([[True, True, True], [True, False, False]])


def test_gae_by_hand() -> None:
    """gamma = 1, lambda = 1/2. First row, rewards 1, 0, 4 and values 2, 4, 2:
    delta_3 = 4 - 2 = 2, delta_2 = 0 + 2 - 4 = -2, delta_1 = 1 + 4 - 2 = 3;
    A_3 = 2, A_2 = -2 + 2/2 = -1, A_1 = 3 - 1/2 = 2.5.
    The second row has one token, reward 3, value 1: A = 2; what stands behind it is padding."""
    rewards = tensor([[1.0, 0.0, 4.0], [3.0, 9.0, 9.0]])
    values = tensor([[2.0, 4.0, 2.0], [1.0, 9.0, 9.0]])
    found = gae(rewards, values, MASK, lam=0.5)
    assert found.tolist() == [[2.5, -1.0, 2.0], [2.0, 0.0, 0.0]]


def test_lambda_0_looks_one_token_ahead_and_lambda_1_to_the_end() -> None:
    rewards, values = tensor([[1.0, 2.0, 4.0]]), tensor([[3.0, 5.0, 6.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert gae(rewards, values, mask, 0.0).tolist() == [[1.0 + 5.0 - 3.0, 2.0 + 6.0 - 5.0, 4.0 - 6.0]]
    assert gae(rewards, values, mask, 1.0).tolist() == [[7.0 - 3.0, 6.0 - 5.0, 4.0 - 6.0]]


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 4), torch.randn(2, 4)
    mask = tensor([[True] * 4, [True, True, False, False]])
    together = gae(rewards, values, mask, 0.8)
    alone = gae(rewards[1:, :2], values[1:, :2], mask[1:, :2], 0.8)
    torch.testing.assert_close(together[1:, :2], alone, rtol=0, atol=1e-7)


def test_whitening_looks_at_answers_alone() -> None:
    """1, 2, 3 and 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5."""
    values = tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    found = whiten(values, MASK, moments(values, MASK))
    expected = [[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]
    torch.testing.assert_close(found, tensor(expected) / math.sqrt(3.5), rtol=0, atol=1e-6)
    halves = moments(values[:1], MASK[:1]) + moments(values[1:], MASK[1:])  # of two processes
    assert halves.tolist() == moments(values, MASK).tolist() == [4.0, 12.0, 50.0]
    assert variance(halves) == 3.5


def test_the_clipped_ratio_by_hand() -> None:
    """Ratios 1.5, 0.5, 1.5, 0.5 and 1.1 with clip 0.2: what gains by going further is cut off, what loses is not."""
    ratio, advantages = tensor([1.5, 0.5, 1.5, 0.5, 1.1]), tensor([2.0, 2.0, -2.0, -2.0, 2.0])
    drawn = tensor([-1.0, -2.0, -3.0, -4.0, -5.0])
    logps = (drawn + ratio.log()).requires_grad_()
    loss, clipped = clipped_policy_loss(logps, drawn, advantages, cliprange=0.2)
    torch.testing.assert_close(loss, tensor([-2.4, -1.0, 3.0, 1.6, -2.2]))
    assert clipped.tolist() == [True, False, False, True, False]
    loss.sum().backward()
    torch.testing.assert_close(logps.grad, tensor([0.0, -1.0, 3.0, 0.0, -2.2]))


def test_the_clipped_value_by_hand() -> None:
    """It was 1 and may move by 0.2. At 2 with return 3: free 1/2, held at 1.2 1.62, the larger counts. At 2 with return
    1: free 1/2, held 0.02. At 1.1 nothing is held."""
    values = tensor([2.0, 2.0, 1.1], requires_grad=True)
    loss, clipped = clipped_value_loss(values, torch.ones(3), tensor([3.0, 1.0, 1.0]), cliprange=0.2)
    torch.testing.assert_close(loss, tensor([1.62, 0.5, 0.005]))
    assert clipped.tolist() == [True, False, False]
    loss.sum().backward()
    torch.testing.assert_close(values.grad, tensor([0.0, 1.0, 0.1]))


def test_estimates_of_the_divergence() -> None:
    """By hand for one token; averaged over all tokens by their probability, both are the divergence itself."""
    assert float(kl_estimate(tensor(-1.0), tensor(-3.0))) == 2.0
    assert float(positive_kl_estimate(tensor(-1.0), tensor(-3.0))) == pytest.approx(math.exp(-2.0) - 1.0 + 2.0)
    p, q = tensor([0.7, 0.2, 0.1]), tensor([0.2, 0.3, 0.5])
    exact = float((p * (p / q).log()).sum())
    for estimate in (kl_estimate, positive_kl_estimate):
        assert float((p * estimate(p.log(), q.log())).sum()) == pytest.approx(exact, abs=1e-6)
    assert bool((positive_kl_estimate(torch.randn(99), torch.randn(99)) >= 0).all())
    assert bool((kl_estimate(p.log(), q.log()) < 0).any())


def test_explained_variance_by_hand() -> None:
    """Returns 1, 2, 3, 6 (variance 3.5), errors 0, 0, 0, 2 (variance 1 - 1/4): 1 - 0.75 / 3.5."""
    returns, errors = tensor([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]]), tensor([[0.0, 0.0, 0.0], [2.0, 9.0, 9.0]])
    found = explained_variance(moments(errors, MASK), moments(returns, MASK))
    assert found == pytest.approx(1.0 - 0.75 / 3.5)
    assert explained_variance(moments(errors, MASK), moments(torch.ones(2, 3), MASK)) == 0.0
