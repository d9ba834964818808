"""Metrics of P-DPO, under TRL's names: of each pair, and of the validation part."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from policy.dpo_losses import ResponseLogps
from prm.training.trainers.reward_trainer import validation_metrics

METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "logits/chosen",
    "logits/rejected",
    "entropy",
    "mean_token_accuracy",
)


@torch.no_grad()
def pair_metrics(statistics: SimpleNamespace, chosen: ResponseLogps, rejected: ResponseLogps, beta: float) -> Tensor:
    """`METRICS` of each pair, float32 [n, 10].

    Rewards are implicit, beta log pi / pi_ref. `logits` and `entropy` (nats) are means over the tokens of the pair,
    `mean_token_accuracy` is the share of the chosen tokens that are the most likely ones.

    Args:
        statistics: those of TRL's fused head, [2n, l - 1] each, chosen first; 0 where no response token is predicted.
    """
    rewards, logps = (beta * chosen.log_ratios, beta * rejected.log_ratios), (chosen.logps, rejected.logps)
    logits, entropies, top1 = (
        getattr(statistics, name).float().sum(-1).chunk(2) for name in ("mean_logits", "entropy", "is_top1")
    )
    columns = (
        *rewards,
        (rewards[0] > rewards[1]).float(),
        rewards[0] - rewards[1],
        *logps,
        logits[0] / chosen.num_tokens,
        logits[1] / rejected.num_tokens,
        (entropies[0] + entropies[1]) / (chosen.num_tokens + rejected.num_tokens),
        top1[0] / chosen.num_tokens,
    )
    return torch.stack(columns, 1)


def dpo_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Weighted means over the validation part: the implicit reward's metrics as for any reward model, and `METRICS`.

    `objective` is the loss. Raises `PrmError`, which ends the run, if a reward is not finite.
    """
    *columns, weight, loss, metrics = cast(tuple[Any, ...], prediction.predictions)
    means = np.average(np.asarray(metrics, np.float64), axis=0, weights=weight)
    return {
        **validation_metrics(EvalPrediction(cast(Any, (*columns, weight)), cast(Any, None))),
        "objective": float(np.average(np.asarray(loss, np.float64), weights=weight)),
        **dict(zip(METRICS, means.tolist(), strict=True)),
    }
