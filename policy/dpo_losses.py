"""Losses of P-DPO, one value per pair; the caller takes the weighted mean.

`h` stands for log pi(chosen) / pi_ref(chosen) - log pi(rejected) / pi_ref(rejected), nats: the margin of the implicit
rewards before they are multiplied by beta.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from policy.config import LossType


class ResponseLogps(NamedTuple):
    """The chosen responses of n pairs, or the rejected ones.

    Args:
        logps: log pi(response | prompt, user), the sum over its tokens, nats, float32 [n].
        ref_logps: log pi_ref(response | prompt), likewise.
        num_tokens: number of tokens of each response, [n], at least 1.
    """

    logps: Tensor
    ref_logps: Tensor
    num_tokens: Tensor

    @property
    def log_ratios(self) -> Tensor:
        """log pi / pi_ref, nats, [n]."""
        return self.logps - self.ref_logps


PairLoss = Callable[[ResponseLogps, ResponseLogps], Tensor]


def dpo_loss(
    chosen: ResponseLogps,
    rejected: ResponseLogps,
    *,
    loss_type: LossType,
    beta: float,
    label_smoothing: float,
    sft_weight: float,
) -> Tensor:
    """The loss of each pair, [n], plus `sft_weight` times `sft` of its chosen response; see `policy.config.Objective`.

    `label_smoothing` is for `robust` only.
    """
    if loss_type == "robust":
        losses = robust(chosen, rejected, beta, label_smoothing)
    else:
        losses = _LOSSES[loss_type](chosen, rejected, beta)
    return losses + sft_weight * sft(chosen) if sft_weight else losses


def soft_label_loss(loss: PairLoss, chosen: ResponseLogps, rejected: ResponseLogps, p_chosen: Tensor) -> Tensor:
    """The loss of each pair, [n], whose label has the probability `p_chosen`: p loss(c, r) + (1 - p) loss(r, c).

    An `sft` term is thus split between the two responses. The second loss is not computed where all labels are hard.
    """
    losses = loss(chosen, rejected)
    if (p_chosen == 1.0).all():
        return losses
    return p_chosen * losses + (1.0 - p_chosen) * loss(rejected, chosen)


def log_ratio_margin(chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
    """h, nats, [n]."""
    return chosen.log_ratios - rejected.log_ratios


def sigmoid(chosen: ResponseLogps, rejected: ResponseLogps, beta: float) -> Tensor:
    """DPO: -log sigmoid(beta h), nats (Rafailov et al. 2023, equation 7)."""
    return -F.logsigmoid(beta * log_ratio_margin(chosen, rejected))


def hinge(chosen: ResponseLogps, rejected: ResponseLogps, beta: float) -> Tensor:
    """SLiC: max(0, 1 - beta h) (Zhao et al. 2023), on log-ratios to the reference (Liu et al. 2024, RSO)."""
    return F.relu(1.0 - beta * log_ratio_margin(chosen, rejected))


def robust(chosen: ResponseLogps, rejected: ResponseLogps, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO: unbiased where a share `label_smoothing` of the labels is flipped (Chowdhury et al. 2024).

    With e for that share: ((1 - e) loss(c, r) - e loss(r, c)) / (1 - 2 e), of the loss `sigmoid`.
    """
    kept, flipped = sigmoid(chosen, rejected, beta), sigmoid(rejected, chosen, beta)
    return ((1.0 - label_smoothing) * kept - label_smoothing * flipped) / (1.0 - 2.0 * label_smoothing)


def ipo(chosen: ResponseLogps, rejected: ResponseLogps, beta: float) -> Tensor:
    """IPO as in TRL: (h - 1 / (2 beta))^2, where h is made of log-ratios per token (Azar et al. 2023, equation 17).

    Azar et al. do not mention the division by the number of tokens, but their results have it, according to TRL.
    """
    per_token = chosen.log_ratios / chosen.num_tokens - rejected.log_ratios / rejected.num_tokens
    return (per_token - 1.0 / (2.0 * beta)) ** 2


def ipo_sequence(chosen: ResponseLogps, rejected: ResponseLogps, beta: float) -> Tensor:
    """IPO on whole responses: (log pi(c) / pi(r) - (log pi_ref(c) / pi_ref(r) + 1 / (2 beta)))^2 (section F.3).

    The paper prints log pi(c) / log pi(r), a quotient of logarithms; it is read as the logarithm of the quotient,
    which is h, as in Azar et al. 2023, equation 17.
    """
    return (log_ratio_margin(chosen, rejected) - 1.0 / (2.0 * beta)) ** 2


def sft(chosen: ResponseLogps) -> Tensor:
    """Mean negative log-likelihood of the response's tokens, nats, [n] (Pang et al. 2024)."""
    return -chosen.logps / chosen.num_tokens


_LOSSES: dict[LossType, Callable[[ResponseLogps, ResponseLogps, float], Tensor]] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "ipo_sequence": ipo_sequence,
}
