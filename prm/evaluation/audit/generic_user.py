"""How the generic user of a personal model, which unknown users get, differs from the tuned uniform model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from prm.evaluation.audit.biases import picks
from prm.metrics import Array, Estimate, correct, estimate, nll


@dataclass(frozen=True)
class Drift:
    """The generic user against the uniform model; intervals by bootstrap over users.

    Args:
        agreement: share of equal picks; a pair on which one of the two is tied counts half.
        distance: mean absolute difference of P(chosen response).
        generic_nats, uniform_nats: log losses in nats; `saved`: the second minus the first, paired.
        gain: accuracy of the generic user minus that of the uniform model, paired, without ties.
    """

    agreement: Estimate
    distance: Estimate
    generic_nats: Estimate
    uniform_nats: Estimate
    saved: Estimate
    gain: Estimate


def find_drift(generic: Array, uniform: Array, p: Array, users: Sequence[str]) -> Drift:
    """The difference from margins [n] of the two."""
    nats = [nll(margin, p) for margin in (generic, uniform)]
    return Drift(
        agreement=estimate(1.0 - np.abs(picks(generic) - picks(uniform)), users),
        distance=estimate(np.abs(special.expit(generic) - special.expit(uniform)), users),
        generic_nats=estimate(nats[0], users),
        uniform_nats=estimate(nats[1], users),
        saved=estimate(nats[1] - nats[0], users),
        gain=estimate(correct(generic, p) - correct(uniform, p), users),
    )
