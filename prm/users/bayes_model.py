"""The user model `bayes`: a Gaussian posterior for each user's offset."""

import torch
from torch import Tensor, nn

from prm.users.bayes.posterior import Posterior
from prm.users.bayes.quadrature import Normal, inflated, information, integrated
from prm.users.user_model import UserModel, untrained

_MIN_PROBABILITY = 1e-6  # of a margin, before its logit is taken
_LEAST_SPREAD = 0.05  # standard deviation, logits: with less, no number of comparisons tells users apart
_MAX_FACTORS = 64  # maximum number of directions in which a user's posterior is narrower than the prior


class Bayes(UserModel):
    """Empirical-Bayes users: Gaussian posteriors of offsets in a subspace (`prm.users.bayes`).

    e_u = (flatness_0 e_0 + basis mean_u) / (flatness_u temper_u). Reward differences are then logits averaged over
    the posterior for a pair of average variance; `margins` averages pair by pair. A user with the prior has
    flatness_0: e_0, to the bit. Nothing here is trained by gradients.

    Tensors: generic [1, dim]; basis [dim, rank]; prior [rank, rank], the covariance of users; moment [rank, rank], the
    mean of z z' over the training pairs; per row means [n_rows, rank], factors [n_rows, rank, kept], the reduction of
    the prior (`prm.users.bayes.posterior.Posterior`), and flatness. Users' logits are divided by `temperature` to the
    power of `share_known`.
    """

    PER_ROW = ("means", "factors", "flatness")

    def __init__(self, n_rows: int, tokens: int, dim: int, rank: int):
        super().__init__(n_rows, tokens, dim)
        self.generic, self.basis = untrained(1, dim), untrained(dim, rank)
        self.prior, self.moment = untrained(rank, rank), untrained(rank, rank)
        self.kept = min(rank, _MAX_FACTORS)
        self.means, self.factors = untrained(n_rows, rank), untrained(n_rows, rank, self.kept)
        self.flatness = nn.Parameter(torch.ones(n_rows), requires_grad=False)
        self.temperature = nn.Parameter(torch.ones(()), requires_grad=False)

    def extra_repr(self) -> str:
        """What the model is, in a few words."""
        return f"{super().extra_repr()}, rank={len(self.prior)}"

    @property
    def n_parameters(self) -> int:
        """Number of user parameters: all users' means, their covariance and e_0."""
        rank = len(self.prior)
        return self.means.numel() - rank + rank * (rank + 1) // 2 + self.generic.numel()

    @property
    def all_alike(self) -> bool:
        """Whether an average pair's logit hardly differs across users."""
        return float((self.prior * self.moment).sum()) < _LEAST_SPREAD**2

    def forward(self, rows: Tensor) -> Tensor:
        flat = (self.flatness[rows] * self.temper(rows, self.temperature))[:, None]
        return (self.generic * (self.flatness[0] / flat) + self.means[rows] @ self.basis.T / flat)[:, None]

    @torch.no_grad()
    def margins(self, differences: Tensor, rows: Tensor, base: Tensor | None = None) -> Tensor:
        """Logit of P(first preferred), averaged over each user's posterior, [n].

        Args:
            differences: h of the first minus h of the second text, [n, dim].
            base: margin of the base head, [n].
        """
        logit, variance = self.logits(differences, rows, base)
        # row 0 exactly: the inflation and this average cancel only up to rounding
        known = torch.logit(integrated(logit, variance).clamp(_MIN_PROBABILITY, 1.0 - _MIN_PROBABILITY)) / self.temper(
            rows, self.temperature
        )
        return torch.where(rows == 0, self._population(differences, base), known)

    @torch.no_grad()
    def logits(self, differences: Tensor, rows: Tensor, base: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance [n] of each user's logit of P(first preferred); arguments as of `margins`."""
        z = differences @ self.basis
        at_zero = inflated(self._population(differences, base), ((z @ self.prior) * z).sum(-1))
        return at_zero + (z * self.means[rows]).sum(-1), self._variances(z, rows)

    @torch.no_grad()
    def information(self, differences: Tensor, rows: Tensor, n: int, base: Tensor | None = None) -> Tensor:
        """How much each of the first n comparisons is expected to tell about the results of the others, nats, [n].

        `rows` is one user's, repeated; the other arguments are as of `margins`.
        """
        mean, variance = self.logits(differences, rows, base)
        z, factor = differences @ self.basis, self.factors[rows[0]]
        covariance = (z[:n] @ self.prior - (z[:n] @ factor) @ factor.T) @ z[n:].T
        return information(Normal(mean[:n], variance[:n]), Normal(mean[n:], variance[n:]), covariance)

    @torch.no_grad()
    def deviations(self, states: Tensor, rows: Tensor) -> Tensor:
        """Posterior standard deviation of each reward <e_u, h>, [n], for h [n, dim]."""
        return self._variances(states @ self.basis, rows).sqrt() / (
            self.flatness[rows] * self.temper(rows, self.temperature)
        )

    def _variances(self, z: Tensor, rows: Tensor) -> Tensor:
        return Posterior(self.means, self.factors).variances(z, rows, self.prior)

    def _population(self, differences: Tensor, base: Tensor | None) -> Tensor:
        margin = differences @ self.generic[0]
        return margin if base is None else margin + base

    @torch.no_grad()
    def set_posterior(self, rows: Tensor, mean: Tensor, factor: Tensor) -> None:
        """Set the posteriors of `rows` [m]: mean [m, rank] and factor [m, rank, kept]."""
        self.means[rows], self.factors[rows] = mean, factor
        self.flatness[rows] = self._flatness(factor)

    @torch.no_grad()
    def set_prior(self, covariance: Tensor) -> None:
        """Set the covariance of users, and with it the generic user's row; other rows stay."""
        self.prior.copy_(covariance)
        rows = torch.zeros(1, dtype=torch.long, device=covariance.device)
        self.set_posterior(rows, torch.zeros_like(covariance[:1]), torch.zeros_like(self.factors[:1]))

    def temper(self, rows: Tensor, temperature: float | Tensor) -> Tensor:
        """The divisor of each user's logits, [n]; 1 for users with the prior."""
        return temperature ** self.share_known(rows)

    def share_known(self, rows: Tensor) -> Tensor:
        """The share by which each user's posterior reduces the variance of an average pair's logit, [n]."""
        squares = self.flatness.square()
        return (squares[0] - squares[rows]) / (squares[0] - 1.0).clamp_min(1e-12)

    def _flatness(self, factor: Tensor) -> Tensor:
        """By how much averaging over the posterior flattens an average pair's logit (probit approximation), [m]."""
        reduction = ((self.moment @ factor) * factor).sum((1, 2))
        return (1.0 + torch.pi / 8.0 * ((self.prior * self.moment).sum() - reduction).clamp_min(0.0)).sqrt()
