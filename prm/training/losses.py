"""Losses, one value per comparison; the caller takes the weighted mean."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F


def bradley_terry(margin: Tensor, p_chosen: Tensor) -> Tensor:
    """Cross-entropy of the label under P(chosen preferred) = sigmoid(margin), in nats (equations 1 and 2).

    Args:
        margin: r(chosen) - r(rejected), float32 [n], a logit.
        p_chosen: probability that chosen is preferred, [n]; 1 gives -log sigmoid(margin), 0.5 is a tie.
    """
    return -(p_chosen * F.logsigmoid(margin) + (1.0 - p_chosen) * F.logsigmoid(-margin))


def personalized_bradley_terry(
    user_margin: Tensor | None, generic_margin: Tensor | None, p_chosen: Tensor, alpha: float
) -> Tensor:
    """Two-term loss of the personalised reward model (section F.2), in nats, [n].

    alpha weighs the user's term, 1 - alpha the generic user's term on the same comparison. A margin of `None` stands
    for a term of weight 0, and the other then has weight 1, as for the uniform model, whose two terms are equal.

    Raises `ValueError` if both are `None`.
    """
    user, generic = (None if m is None else bradley_terry(m, p_chosen) for m in (user_margin, generic_margin))
    return two_terms(user, generic, alpha)


def two_terms(user: Tensor | None, generic: Tensor | None, alpha: float) -> Tensor:
    """alpha user + (1 - alpha) generic, [n], of the losses of the user and of the generic user.

    A loss of `None` stands for a term of weight 0, and the other then has weight 1.

    Raises `ValueError` if both are `None`.
    """
    if user is None and generic is None:
        raise ValueError("at least one term is needed")
    if user is None or generic is None:
        return cast(Tensor, user if generic is None else generic)
    return alpha * user + (1.0 - alpha) * generic


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(w v) / sum(w); both [n]."""
    return torch.sum(values * weights) / torch.sum(weights)
