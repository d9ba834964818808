"""How much a user's own part counts, learnt from how well such parts predicted held-out comparisons.

The prediction is m + w d: m is the population's logit, d what the user adds, and the weight w in [0, 1] depends on the
number of the user's training comparisons. w is the lower end of a 95% interval, from held-out comparisons of all users
with about as many: what their own parts are surely worth, and 0 where that is nothing.
"""

from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor

OCTAVES = 24  # weights are learnt at 1, 2, 4, ... comparisons
_REACH = 1.5  # users whose numbers of comparisons differ by so many octaves do not count
_STEPS = 60
_MAX_STEP = 0.5


@dataclass(frozen=True)
class HeldOut:
    """Held-out comparisons, arrays [n].

    Args:
        margin: the population's logit.
        added: what the user adds to it.
        count: number of training comparisons of the comparison's user.
        rows: row of the user, int64; comparisons of one user are not independent.
        p_chosen, weight: label and weight.
    """

    margin: Tensor
    added: Tensor
    count: Tensor
    rows: Tensor
    p_chosen: Tensor
    weight: Tensor

    def take(self, index: Tensor) -> "HeldOut":
        """Those at `index`."""
        return HeldOut(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def weight_at(weights: Tensor, count: Tensor) -> Tensor:
    """The weight for each number of comparisons, [n]: linear in its logarithm between the learnt ones; 0 for 0."""
    octave = count.clamp(1.0, 2.0 ** (OCTAVES - 1)).to(weights).log2()
    left = octave.floor().long().clamp_max(OCTAVES - 2)
    return torch.lerp(weights[left], weights[left + 1], octave - left) * (count > 0)


@torch.no_grad()
def fit_weights(held_out: HeldOut) -> Tensor:
    """Fit the weight for 1, 2, 4, ... training comparisons, [`OCTAVES`]; beyond the largest number it stays the same.

    At each, w maximises the likelihood of the held-out comparisons minus 0.5 w^2; those of users with other numbers of
    comparisons count less the more the numbers differ. Its standard error s is the larger of two: from the curvature,
    and clustered by user (sandwich). w becomes w - t s, in [0, 1], with t of Student's distribution for as many users;
    0 for a single one, whose taste says nothing of others.
    """
    known = held_out.take((held_out.count > 0).nonzero()[:, 0])
    weights = torch.zeros(OCTAVES)
    if not len(known.count):
        return weights
    octave = known.count.double().log2()
    n = min(OCTAVES, int(octave.max().ceil()) + 1)
    near = (1.0 - (octave - torch.arange(n)[:, None]).abs() / _REACH).clamp_min(0.0) * known.weight.double()
    margin, added, p = (x.double() for x in (known.margin, known.added, known.p_chosen))
    w = torch.zeros(n, dtype=torch.float64)
    for _ in range(_STEPS):
        residual, curvature = _derivatives(w, margin, added, p)
        step = ((near * residual).sum(1) - w) / ((near * curvature).sum(1) + 1.0)
        w = w + step.clamp(-_MAX_STEP, _MAX_STEP)
        if float(step.abs().max()) < 1e-8:
            break
    residual, curvature = _derivatives(w, margin, added, p)
    information = (near * curvature).sum(1) + 1.0
    by_user = torch.zeros(n, int(known.rows.max()) + 1, dtype=torch.float64)
    by_user.index_add_(1, known.rows, near * residual)
    error = torch.maximum(by_user.square().sum(1), information).sqrt() / information
    users = torch.zeros_like(by_user).index_add_(1, known.rows, near).count_nonzero(1)
    shrunk = (w - _quantile(users) * error).clamp(0.0, 1.0)
    weights[:n], weights[n:] = shrunk.float(), float(shrunk[-1])
    return weights


def _quantile(users: Tensor) -> Tensor:
    """The upper end of a 95% interval in standard errors, by Student's distribution, [k]; infinite for one user."""
    quantile = student.ppf(0.975, (users - 1).clamp_min(1).numpy())
    return torch.from_numpy(quantile).masked_fill(users < 2, torch.inf)


def _derivatives(w: Tensor, margin: Tensor, added: Tensor, p_chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(derivative of the log likelihood by w, minus its second derivative), [k, n] each."""
    p = torch.sigmoid(margin + w[:, None] * added)
    return (p_chosen - p) * added, p * (1.0 - p) * added.square()
