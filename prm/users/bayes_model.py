"""The user model `bayes`: a Gaussian posterior for each user's offset."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from prm.errors import PrmError
from prm.users.bayes.posterior import Posterior, fewest_columns
from prm.users.bayes.quadrature import Normal, inflated, information, integrated
from prm.users.ragged_rows import RaggedRows, without_zeros
from prm.users.user_model import Blocks, UserModel, untrained

_MIN_PROBABILITY = 1e-6  # of a margin, before its logit is taken
_LEAST_SPREAD = 0.05  # standard deviation, logits: with less, no number of comparisons tells users apart
LEFT_OUT = 0.01  # share of the prior's variance of an average pair's logit that a posterior may be too wide by
_ROUNDING = 1e-6  # of the same: a column that reduces it by less is not kept
_MAX_FACTORS = 64  # maximum number of directions in which a user's posterior is narrower than the prior
_COLUMNS = "columns"  # of a user, [count, rank]; earlier versions held `_DENSE`, [rank, maximum], with zeros
_DENSE = "factors"


class Bayes(UserModel):
    """Empirical-Bayes users: Gaussian posteriors of offsets in a subspace (`prm.users.bayes`).

    e_u = (flatness_0 e_0 + basis mean_u) / (flatness_u temper_u). Reward differences are then logits averaged over
    the posterior for a pair of average variance; `margins` averages pair by pair. A user with the prior has
    flatness_0: e_0, to the bit. Nothing here is trained by gradients.

    The covariance of a posterior is the prior's, which all users share, minus the product of columns of the user's own:
    low rank plus a part that costs no user a number, where "low rank plus diagonal" would give each a diagonal. A user
    has as many columns as the comparisons justify: those left out would reduce the variance of an average pair's logit
    by at most `LEFT_OUT` of the prior's, by more only where there are `most_columns`.

    Tensors: generic [1, dim]; basis [dim, rank]; prior [rank, rank], the covariance of users; moment [rank, rank], the
    mean of z z' over the training pairs; per row means [n_rows, rank], flatness, which counts what is left out, and in
    `factors` some columns [count, rank], the reduction of the prior (`prm.users.bayes.posterior.Posterior`). Users'
    logits are divided by `temperature` to the power of `share_known`.
    """

    PER_ROW = ("means", "flatness")

    def __init__(self, n_rows: int, tokens: int, dim: int, rank: int):
        super().__init__(n_rows, tokens, dim)
        self.generic, self.basis = untrained(1, dim), untrained(dim, rank)
        self.prior, self.moment = untrained(rank, rank), untrained(rank, rank)
        self.means, self.factors = untrained(n_rows, rank), RaggedRows(n_rows, rank)
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
    def most_columns(self) -> int:
        """Maximum number of columns of a user."""
        return min(len(self.prior), _MAX_FACTORS)

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
        z, factor = differences @ self.basis, self.factors.of(rows[:1])[0].T
        covariance = (z[:n] @ self.prior - (z[:n] @ factor) @ factor.T) @ z[n:].T
        return information(Normal(mean[:n], variance[:n]), Normal(mean[n:], variance[n:]), covariance)

    @torch.no_grad()
    def deviations(self, states: Tensor, rows: Tensor) -> Tensor:
        """Posterior standard deviation of each reward <e_u, h>, [n], for h [n, dim]."""
        return self._variances(states @ self.basis, rows).sqrt() / (
            self.flatness[rows] * self.temper(rows, self.temperature)
        )

    def _variances(self, z: Tensor, rows: Tensor) -> Tensor:
        """Posterior variance of <z, o> for each row of z [n, rank] and its user."""
        reduction = torch.zeros(len(z), device=z.device)
        for part in self.factors.parts(rows):
            columns, position = self.factors.of(rows[part])
            reduction[part].index_add_(0, position, (z[part][position] * columns).sum(1).square())
        return (((z @ self.prior) * z).sum(-1) - reduction).clamp_min(0.0)

    def _population(self, differences: Tensor, base: Tensor | None) -> Tensor:
        margin = differences @ self.generic[0]
        return margin if base is None else margin + base

    @torch.no_grad()
    def posterior(self, rows: Tensor) -> Posterior:
        """The posteriors of `rows` [m], with columns of zeros where one has fewer than another."""
        return Posterior(self.means[rows], self.factors.padded(rows).transpose(1, 2))

    @torch.no_grad()
    def set_posterior(self, rows: Tensor, posterior: Posterior, left_out: Tensor | float = 0.0) -> None:
        """Set the posteriors of distinct rows [m]; of their columns only those are kept that are needed.

        Args:
            left_out: of each row, [m]: what the factor was without before, as `left_out` says.
        """
        variance = self._prior_variance()
        budget = (LEFT_OUT * variance - left_out).clamp_min(_ROUNDING * variance).expand(len(rows))
        columns, count, reduction = fewest_columns(posterior.factor, self.moment, budget, self.most_columns)
        self.means[rows] = posterior.mean
        self.factors.set(rows, columns, count)
        self.flatness[rows] = self._flatness(reduction + left_out)

    @torch.no_grad()
    def left_out(self, rows: Tensor) -> Tensor:
        """By how much columns that were not kept reduced the variance of an average pair's logit, [m]."""
        columns, position = self.factors.of(rows)
        kept = torch.zeros(len(rows), device=columns.device)
        kept.index_add_(0, position, ((columns @ self.moment) * columns).sum(1))
        known = self._prior_variance() - (self.flatness[rows].square() - 1.0) * 8.0 / torch.pi
        return (known - kept).clamp_min(0.0)

    @torch.no_grad()
    def set_prior(self, covariance: Tensor) -> None:
        """Set the covariance of users, and with it the generic user's row; other rows stay."""
        self.prior.copy_(covariance)
        rows = torch.zeros(1, dtype=torch.long, device=covariance.device)
        self.set_posterior(
            rows, Posterior(torch.zeros_like(covariance[:1]), covariance.new_zeros(1, len(covariance), 0))
        )

    def temper(self, rows: Tensor, temperature: float | Tensor) -> Tensor:
        """The divisor of each user's logits, [n]; 1 for users with the prior."""
        return temperature ** self.share_known(rows)

    def share_known(self, rows: Tensor) -> Tensor:
        """The share by which each user's posterior reduces the variance of an average pair's logit, [n]."""
        squares = self.flatness.square()
        return (squares[0] - squares[rows]) / (squares[0] - 1.0).clamp_min(1e-12)

    def _prior_variance(self) -> Tensor:
        """Prior variance of an average pair's logit, a scalar."""
        return (self.prior * self.moment).sum()

    def _flatness(self, reduction: Tensor) -> Tensor:
        """By how much averaging over the posterior flattens an average pair's logit (probit approximation), [m].

        Args:
            reduction: of the variance of an average pair's logit, [m].
        """
        return (1.0 + torch.pi / 8.0 * (self._prior_variance() - reduction).clamp_min(0.0)).sqrt()

    @property
    def own_tensors(self) -> tuple[str, ...]:
        return (*super().own_tensors, *(f"factors.{name}" for name in RaggedRows.TENSORS))

    @property
    def max_row_bytes(self) -> int:
        return super().max_row_bytes + self.most_columns * self.means[0].nbytes

    def row_tensors(self, row: int) -> dict[str, Tensor]:
        return super().row_tensors(row) | {_COLUMNS: self.factors.of(self._index(row))[0].cpu()}

    @torch.no_grad()
    def set_row_tensors(self, row: int, tensors: Mapping[str, Tensor]) -> None:
        columns = tensors[_COLUMNS] if _COLUMNS in tensors else without_zeros(tensors[_DENSE][None])["vectors"]
        if columns.shape != (len(columns), self.factors.width) or len(columns) > self.most_columns:
            raise PrmError(
                f"a user's posterior has columns {list(columns.shape)}, and the model has rank {self.factors.width}"
            )
        super().set_row_tensors(row, tensors)
        self._set_columns(row, columns)

    @torch.no_grad()
    def set_row(self, row: int, source_rows: Tensor) -> None:
        """Set the posterior of `row` to the mean of their means, and of their covariances, of `source_rows`."""
        mean, columns = self.means[source_rows].mean(0, keepdim=True), self.factors.of(source_rows)[0]
        factor = columns.T[None] / len(source_rows) ** 0.5
        self.set_posterior(self._index(row), Posterior(mean, factor), self.left_out(source_rows).mean(0, keepdim=True))

    @torch.no_grad()
    def forget_row(self, row: int) -> None:
        super().forget_row(row)
        self._set_columns(row, self.prior[:0])

    @torch.no_grad()
    def subset(self, rows: Tensor) -> Self:
        subset = super().subset(rows)
        subset.factors = self.factors.subset(rows)
        return subset

    @torch.no_grad()
    def scatter_(self, rows: Tensor, subset: UserModel) -> None:
        super().scatter_(rows, subset)
        assert isinstance(subset, Bayes)
        every = torch.arange(1, subset.n_rows, device=rows.device)
        self.factors.set(rows[1:], subset.factors.of(every)[0], subset.factors.count[1:])

    @torch.no_grad()
    def grow(self, n_rows: int) -> None:
        super().grow(n_rows)
        self.factors.grow(n_rows)

    def adopt(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        saved = dict(saved)
        shape = [self.n_rows, len(self.prior), self.most_columns]
        if _DENSE in saved and list(saved[_DENSE].shape) == shape:  # earlier versions held zeros, too
            saved |= {f"factors.{name}": tensor for name, tensor in without_zeros(saved.pop(_DENSE)).items()}
        vectors = saved.get("factors.vectors")
        self.factors.make_room(0 if vectors is None or vectors.ndim == 0 else len(vectors))
        return saved

    def check_saved(self, blocks: Blocks) -> None:
        self.factors.check({name: blocks(f"factors.{name}") for name in RaggedRows.TENSORS}, self.most_columns)

    def _index(self, row: int) -> Tensor:
        return torch.tensor([row], device=self.means.device)

    def _set_columns(self, row: int, columns: Tensor) -> None:
        count = torch.tensor([len(columns)], device=self.means.device)
        self.factors.set(self._index(row), columns.to(self.means), count)
