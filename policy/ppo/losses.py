"""What PPO computes of numbers: advantages, clipped losses, estimates of a divergence. No model in here.

All are of tokens of answers, [n, l], an answer's own from the left on; `mask` is True on them. Values per token come
out; the caller takes the mean.
"""

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, equation 16), [n, l]; nothing comes behind an answer.

    Nothing is discounted (gamma = 1).

    Args:
        rewards: of each token.
        values: expected at each token before it is drawn.
        lam: 0 looks one token ahead, 1 to the end of the answer.
    """
    values, rewards = values * mask, rewards * mask  # behind an answer's end all is 0, and stays it
    advantages = torch.zeros_like(values)
    later, value = values.new_zeros(len(values)), values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        later = rewards[:, t] + value - values[:, t] + lam * later
        value = values[:, t]
        advantages[:, t] = later
    return advantages


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Count, sum and sum of squares under the mask, float64 [3]: those of several processes are added."""
    chosen = values[mask].double()
    return torch.stack([chosen.new_tensor(len(chosen)), chosen.sum(), chosen.square().sum()])


def variance(total: Tensor) -> float:
    """Variance of what these `moments` are of."""
    count, first, second = total.tolist()
    return max(second / count - (first / count) ** 2, 0.0)


def whiten(values: Tensor, mask: Tensor, total: Tensor) -> Tensor:
    """Less their mean and over their standard deviation, [n, l]; `total`: moments of all that belong together."""
    mean = float(total[1] / total[0])
    return (values - mean) / (variance(total) + 1e-8) ** 0.5 * mask


def explained_variance(errors: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns), of their moments: at 1 values foretell, at 0 no better than a mean."""
    spread = variance(returns)
    return 1.0 - variance(errors) / spread if spread > 0.0 else 0.0


def kl_estimate(logps: Tensor, reference: Tensor) -> Tensor:
    """log pi - log pi_ref of drawn tokens, nats: without bias, either sign (k1 in Schulman's note of 2020)."""
    return logps - reference


def positive_kl_estimate(logps: Tensor, reference: Tensor) -> Tensor:
    """ratio - 1 - log ratio with ratio = pi_ref / pi of drawn tokens, nats: without bias, never negative (k3)."""
    log_ratio = reference - logps
    return log_ratio.exp() - 1.0 - log_ratio


def clipped_policy_loss(logps: Tensor, drawn: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(loss, whether it was clipped) of each token (Schulman et al. 2017, equation 7, to be minimised).

    Args:
        logps: log pi of the tokens now.
        drawn: the same when they were drawn.
        clip: how far from 1 the ratio of the two still counts.
    """
    ratio = (logps - drawn).exp()
    free, clipped = -advantages * ratio, -advantages * ratio.clamp(1.0 - clip, 1.0 + clip)
    return torch.maximum(free, clipped), clipped > free


def clipped_value_loss(values: Tensor, drawn: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(half the squared error, whether it was clipped) of each value, which may move by `clip` from what it was."""
    near = drawn + (values - drawn).clamp(-clip, clip)
    free, clipped = 0.5 * (values - returns).square(), 0.5 * (near - returns).square()
    return torch.maximum(free, clipped), clipped > free
