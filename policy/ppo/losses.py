"""PPO's formulas, without a model: advantages, clipped losses, and KL estimates.

Tensors hold response tokens, [n, l], aligned on the left; `mask` is True on tokens and False on padding. Losses are per
token; the caller averages.
"""

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, equation 16), [n, l], without discount (gamma = 1).

    Args:
        rewards: of each token.
        values: predicted before each token is sampled.
        lam: 0 looks one token ahead, 1 to the end of the response.
    """
    values, rewards = values * mask, rewards * mask  # 0 after the end of a response
    advantages = torch.zeros_like(values)
    advantage, next_value = values.new_zeros(len(values)), values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        advantage = rewards[:, t] + next_value - values[:, t] + lam * advantage
        next_value = values[:, t]
        advantages[:, t] = advantage
    return advantages


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Count, sum and sum of squares under the mask, float64 [3], to be summed over processes."""
    selected = values[mask].double()
    return torch.stack([selected.new_tensor(len(selected)), selected.sum(), selected.square().sum()])


def variance(total: Tensor) -> float:
    """Variance from `moments`."""
    count, first, second = total.tolist()
    return max(second / count - (first / count) ** 2, 0.0)


def whiten(values: Tensor, mask: Tensor, total: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation, [n, l]; `total`: moments over all processes."""
    mean = float(total[1] / total[0])
    return (values - mean) / (variance(total) + 1e-8) ** 0.5 * mask


def explained_variance(errors: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns), from moments: 1 for perfect values, 0 for a constant."""
    total_variance = variance(returns)
    return 1.0 - variance(errors) / total_variance if total_variance > 0.0 else 0.0


def kl_estimate(logps: Tensor, reference: Tensor) -> Tensor:
    """log pi - log pi_ref of sampled tokens, nats: unbiased, of either sign (k1 in Schulman's note of 2020)."""
    return logps - reference


def positive_kl_estimate(logps: Tensor, reference: Tensor) -> Tensor:
    """ratio - 1 - log ratio with ratio = pi_ref / pi of sampled tokens, nats: unbiased, never negative (k3)."""
    log_ratio = reference - logps
    return log_ratio.exp() - 1.0 - log_ratio


def clipped_policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """(loss, whether it was clipped) of each token (Schulman et al. 2017, equation 7, to be minimised).

    Args:
        logps: log pi of the tokens under the current policy.
        old_logps: log pi when they were sampled.
        cliprange: how far the ratio may be from 1.
    """
    ratio = (logps - old_logps).exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """(half the squared error, whether it was clipped) of each value, kept within `cliprange` of its old value."""
    bounded = old_values + (values - old_values).clamp(-cliprange, cliprange)
    unclipped, clipped = 0.5 * (values - returns).square(), 0.5 * (bounded - returns).square()
    return torch.maximum(unclipped, clipped), clipped > unclipped
