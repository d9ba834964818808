"""User models: from a row of the user index to the user's embedding (section 4.3). `build_user_model` picks one."""

import copy
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from prm.config import UserConfig
from prm.users.bayes.posterior import Posterior
from prm.users.bayes.quadrature import inflated, integrated
from prm.users.text_prior import TextPrior
from prm.users.user_weight import OCTAVES, weight_at

_MIN_PROBABILITY = 1e-6  # of a margin, before its logit is taken
_MAX_FACTORS = 64  # maximum number of directions in which a user's posterior is narrower than the prior


class UserModel(nn.Module):
    """Row to embedding: `forward(rows [n]) -> [n, tokens, dim]`, float32.

    Parameters fall into two groups, which each class declares by name. `SHARED` ones are used by all users. `PER_ROW`
    ones are tables whose first axis is the row: each user's parameters are trained on that user's comparisons alone.
    `EMBEDDINGS` names the parameters whose last axis is `dim` and that start as token embeddings in a soft prompt,
    `OFFSETS` those that are added to them and start at 0. `CAN_AVERAGE`: as linear heads, the mean of several fitted
    models is a model of the same kind.
    """

    SHARED: ClassVar[tuple[str, ...]] = ()
    PER_ROW: ClassVar[tuple[str, ...]] = ()
    EMBEDDINGS: ClassVar[tuple[str, ...]] = ()
    OFFSETS: ClassVar[tuple[str, ...]] = ()
    CAN_AVERAGE: ClassVar[bool] = True

    def __init__(self, n_rows: int, tokens: int, dim: int):
        super().__init__()
        self.n_rows, self.tokens, self.dim = n_rows, tokens, dim
        self._spare: dict[str, Tensor] = {}  # tables with spare rows, by name

    def forward(self, rows: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define forward")

    def extra_repr(self) -> str:
        """What the model is, in a few words."""
        return f"rows={self.n_rows}, tokens={self.tokens}, dim={self.dim}"

    def shared(self) -> list[nn.Parameter]:
        """Parameters used by every row."""
        return [self.get_parameter(name) for name in self.SHARED]

    def per_row(self) -> list[nn.Parameter]:
        """Tables [n_rows, ...] with one user per row."""
        return [self.get_parameter(name) for name in self.PER_ROW]

    def shared_penalty(self) -> Tensor:
        """Sum of squares of the shared parameters, a scalar."""
        return sum((p.square().sum() for p in self.shared()), torch.zeros(()))

    def row_penalty(self, rows: Tensor) -> Tensor:
        """Sum of squares of each row's parameters, [n]."""
        zero = torch.zeros(len(rows), device=rows.device)
        return sum((p[rows].square().flatten(1).sum(1) for p in self.per_row()), zero)

    @property
    def n_parameters(self) -> int:
        """Number of user parameters, N_u (section 4.3); row 0 counts if it is trained."""
        tables = sum(p.numel() - (0 if self.row_zero_needs_training else p[0].numel()) for p in self.per_row())
        return tables + sum(p.numel() for p in self.shared())

    @property
    def row_zero_needs_training(self) -> bool:
        """True if the generic user has its own parameters, which alpha = 1 leaves untrained."""
        return False

    @property
    def trained_by_gradients(self) -> bool:
        """False if the model is fitted in another way, and its parameters take no gradients."""
        return any(p.requires_grad for p in self.parameters())

    def margins(self, differences: Tensor, rows: Tensor, base: Tensor | None = None) -> Tensor:
        """Logit of P(first preferred), [n], from differences of hidden states [n, dim]: <e_u, difference> + base."""
        margin = (self(rows)[:, 0] * differences).sum(-1)
        return margin if base is None else margin + base

    def loadings(self, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """(weights [n, k], axes [k, dim]) with e_u = weights axes, if users differ in few directions; for one token."""
        return None

    def break_symmetry(self, generator: torch.Generator) -> None:
        """Make parameters differ that would get equal gradients; nothing to do for most models."""

    @torch.no_grad()
    def set_row(self, row: int, source_rows: Tensor) -> None:
        """Set the parameters of `row` to the mean of those of `source_rows`."""
        for table in self.per_row():
            table[row] = table[source_rows].mean(0)

    @torch.no_grad()
    def forget_row(self, row: int) -> None:
        """Overwrite a user's parameters with the generic user's."""
        for table in self.per_row():
            table[row] = table[0]

    @torch.no_grad()
    def subset(self, rows: Tensor) -> Self:
        """A copy with these rows alone, in their order; row 0 must be the first. Shared parameters stay shared."""
        subset = copy.copy(self)
        subset._parameters, subset._spare = dict(self._parameters), {}
        for name in self.PER_ROW:
            table = self.get_parameter(name)
            subset._parameters[name] = nn.Parameter(table[rows].clone(), requires_grad=table.requires_grad)
        subset.n_rows = len(rows)
        return subset

    @torch.no_grad()
    def scatter_(self, rows: Tensor, subset: "UserModel") -> None:
        """Write the users of a copy made by `subset(rows)` back to their rows; row 0 stays."""
        for table, source in zip(self.per_row(), subset.per_row(), strict=True):
            table[rows[1:]] = source[1:]

    @torch.no_grad()
    def grow(self, n_rows: int) -> None:
        """Add rows that start as the generic user; existing rows stay the same to the bit.

        The tables are reallocated with an eighth to spare, so that further rows rarely need another copy.
        """
        for name in self.PER_ROW:
            table, spare = self.get_parameter(name), self._spare.get(name)
            if spare is None or spare.data_ptr() != table.data_ptr() or len(spare) < n_rows:
                spare = table.new_empty(n_rows + self.n_rows // 8, *table.shape[1:])
                spare[: self.n_rows] = table
            spare[self.n_rows : n_rows] = table[0]
            self._spare[name] = spare
            setattr(self, name, nn.Parameter(spare[:n_rows], requires_grad=table.requires_grad))
        self.n_rows = n_rows


class Uniform(UserModel):
    """Example 1: the same embedding for everyone; empty with `tokens` = 0, the vanilla reward model."""

    SHARED = EMBEDDINGS = ("embedding",)

    def __init__(self, n_rows: int, tokens: int, dim: int):
        super().__init__(n_rows, tokens, dim)
        self.embedding = nn.Parameter(torch.zeros(tokens, dim))

    def forward(self, rows: Tensor) -> Tensor:
        return self.embedding.expand(len(rows), -1, -1)


class Individual(UserModel):
    """Example 2: e_i = e_0 + o_i, with o_0 = 0: the generic user is e_0."""

    SHARED = EMBEDDINGS = ("generic",)
    PER_ROW = OFFSETS = ("offsets",)

    def __init__(self, n_rows: int, tokens: int, dim: int):
        super().__init__(n_rows, tokens, dim)
        self.generic = nn.Parameter(torch.zeros(tokens, dim))
        self.offsets = nn.Parameter(torch.zeros(n_rows, tokens, dim))

    def forward(self, rows: Tensor) -> Tensor:
        known = (rows > 0).to(self.offsets.dtype)[:, None, None]  # row 0 stays at e_0, to the bit
        return self.generic + self.offsets[rows] * known


class Separate(UserModel):
    """Example 2 without e_0: each row, including the generic user's, is a separate embedding."""

    PER_ROW = EMBEDDINGS = ("embeddings",)

    def __init__(self, n_rows: int, tokens: int, dim: int):
        super().__init__(n_rows, tokens, dim)
        self.embeddings = nn.Parameter(torch.zeros(n_rows, tokens, dim))

    def forward(self, rows: Tensor) -> Tensor:
        return self.embeddings[rows]

    @property
    def row_zero_needs_training(self) -> bool:
        return True


class Cluster(UserModel):
    """Example 3: e_i = V w_i, a mixture of K centres; weights free as in the paper, or through a softmax."""

    SHARED = EMBEDDINGS = ("centres",)
    PER_ROW = ("weights",)
    CAN_AVERAGE = False  # centres of different fits do not correspond

    def __init__(self, n_rows: int, tokens: int, dim: int, clusters: int, softmax: bool):
        super().__init__(n_rows, tokens, dim)
        self.softmax = softmax
        self.centres = nn.Parameter(torch.zeros(clusters, tokens, dim))
        self.weights = nn.Parameter(torch.full((n_rows, clusters), 0.0 if softmax else 1.0 / clusters))

    def forward(self, rows: Tensor) -> Tensor:
        weights = self.weights[rows]
        return torch.einsum("nk,ktd->ntd", weights.softmax(-1) if self.softmax else weights, self.centres)

    def extra_repr(self) -> str:
        """What the model is, in a few words."""
        return f"{super().extra_repr()}, clusters={self.weights.shape[1]}, softmax={self.softmax}"

    def loadings(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.weights[rows]
        return weights.softmax(-1) if self.softmax else weights, self.centres[:, 0]

    @torch.no_grad()
    def break_symmetry(self, generator: torch.Generator) -> None:
        """Draw the weights near their mean."""
        spread = 0.3 if self.softmax else 0.3 / self.weights.shape[1]  # a third of the mean weight either way
        self.weights.add_(torch.randn(self.weights.shape, generator=generator) * spread)

    @property
    def row_zero_needs_training(self) -> bool:
        return True


class LowRank(UserModel):
    """e_i = e_0 + B w_i: users differ in few directions, the basis B, shared by all (LoRe, Bose et al. 2025).

    With both penalties the offsets B w_i have the penalty sqrt(l2 user_l2) times their nuclear norm, which keeps the
    number of directions small (Srebro et al. 2005). w_0 = 0: the generic user is e_0.
    """

    SHARED = ("generic", "basis")
    EMBEDDINGS = ("generic", "basis")
    PER_ROW = ("weights",)
    CAN_AVERAGE = False  # the bases of different fits do not correspond

    def __init__(self, n_rows: int, tokens: int, dim: int, rank: int):
        super().__init__(n_rows, tokens, dim)
        self.generic = nn.Parameter(torch.zeros(tokens, dim))
        self.basis = nn.Parameter(torch.zeros(rank, tokens, dim))
        self.weights = nn.Parameter(torch.zeros(n_rows, rank))

    def forward(self, rows: Tensor) -> Tensor:
        return self.generic + torch.einsum("nk,ktd->ntd", self._known(rows), self.basis)

    def loadings(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        known = self._known(rows)
        return torch.cat([torch.ones_like(known[:, :1]), known], 1), torch.cat([self.generic[None], self.basis])[:, 0]

    def _known(self, rows: Tensor) -> Tensor:
        return self.weights[rows] * (rows > 0).to(self.weights.dtype)[:, None]  # row 0 stays at e_0, to the bit

    @torch.no_grad()
    def break_symmetry(self, generator: torch.Generator) -> None:
        """Draw weights around 0, where they would not move; those of row 0, from which new rows start, stay 0."""
        self.weights[1:] += torch.randn(self.weights[1:].shape, generator=generator) * 0.1


class Stack(UserModel):
    """e_i = e_0 + w(n_i) o_i: e_0 is the uniform model's head, o_i an offset, and its weight w depends on n_i.

    Tensors: generic [1, dim], e_0; weights [`OCTAVES`], w at 1, 2, 4, ... comparisons (`prm.users.user_weight`);
    penalties [2], user_l2 and the variance of the factors by which users scale e_0 (`prm.training.ridge_offsets`); per
    row offsets [n_rows, 1, dim] and counts [n_rows], the number n_i of comparisons that o_i was fitted to. Nothing here
    is trained by gradients.
    """

    PER_ROW = ("offsets", "counts")

    def __init__(self, n_rows: int, tokens: int, dim: int):
        super().__init__(n_rows, tokens, dim)
        self.generic, self.weights, self.penalties = _untrained(1, dim), _untrained(OCTAVES), _untrained(2)
        self.offsets, self.counts = _untrained(n_rows, 1, dim), _untrained(n_rows)

    @property
    def n_parameters(self) -> int:
        """Number of user parameters: e_0, the weights, and the offsets of all users."""
        return self.generic.numel() + OCTAVES + self.offsets.numel() - self.dim

    def forward(self, rows: Tensor) -> Tensor:
        return self.generic + weight_at(self.weights, self.counts[rows])[:, None, None] * self.offsets[rows]


class Bayes(UserModel):
    """Empirical-Bayes users: Gaussian posteriors of offsets in a subspace (`prm.users.bayes`).

    e_u = (flatness_0 e_0 + basis mean_u) / (flatness_u temper_u). Reward differences are then logits averaged over
    the posterior for a pair of average variance; `margins` averages pair by pair. A user with the prior has
    flatness_0: e_0, to the bit. Nothing here is trained by gradients.

    Tensors: generic [1, dim]; basis [dim, rank]; prior [rank, rank], the covariance of users; moment [rank, rank], the
    mean of z z' over the training pairs; per row means [n_rows, rank], factors [n_rows, rank, kept], the reduction of
    the prior (`prm.users.bayes.posterior.Posterior`), and flatness. Users' logits are divided by `temperature` to the
    power of `share_known`.

    Args:
        text_dim: width of the hidden states of `user_text` for the text prior (`text_prior`); 0 without one.
    """

    PER_ROW = ("means", "factors", "flatness")

    def __init__(self, n_rows: int, tokens: int, dim: int, rank: int, text_dim: int = 0):
        super().__init__(n_rows, tokens, dim)
        self.generic, self.basis = _untrained(1, dim), _untrained(dim, rank)
        self.prior, self.moment = _untrained(rank, rank), _untrained(rank, rank)
        self.kept = min(rank, _MAX_FACTORS)
        self.means, self.factors = _untrained(n_rows, rank), _untrained(n_rows, rank, self.kept)
        self.flatness = nn.Parameter(torch.ones(n_rows), requires_grad=False)
        self.temperature = nn.Parameter(torch.ones(()), requires_grad=False)
        self.text_prior = TextPrior(text_dim, rank, self.kept) if text_dim else None

    def extra_repr(self) -> str:
        """What the model is, in a few words."""
        return f"{super().extra_repr()}, rank={len(self.prior)}"

    @property
    def n_parameters(self) -> int:
        """Number of user parameters: all users' means, their covariance, e_0, and the map of the text prior."""
        rank = len(self.prior)
        text_map = self.text_prior.weight.numel() if self.text_prior is not None else 0
        return self.means.numel() - rank + rank * (rank + 1) // 2 + self.generic.numel() + text_map

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
    def set_text_prior(self, rows: Tensor, states: Tensor) -> None:
        """Set posteriors from texts' hidden states [m, text_dim], for users in `rows` [m] that still have the prior."""
        new = (~self.known(rows)).nonzero().squeeze(1)
        if self.text_prior is not None and len(new):
            self.set_posterior(rows[new], *self.text_prior(states[new]))

    def known(self, rows: Tensor) -> Tensor:
        """Which users have a posterior narrower than the prior, bool [m]."""
        return self.factors[rows].flatten(1).any(1)

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


def _untrained(*shape: int) -> nn.Parameter:
    """A parameter that is saved and moved with the model, but not trained."""
    return nn.Parameter(torch.zeros(*shape), requires_grad=False)


@torch.no_grad()
def init_from_token_embeddings(model: UserModel, words: Tensor, seed: int) -> None:
    """Initialise embeddings with token embeddings [V, dim], so that a soft prompt starts as plausible input.

    e_0, the centres and separate rows take tokens drawn without replacement if the table is large enough; offsets stay
    0 and cluster weights start near uniform.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in model.EMBEDDINGS:
        parameter = model.get_parameter(name)
        n = parameter.numel() // model.dim
        draw = torch.randperm(len(words), generator=generator)[torch.arange(n) % len(words)]
        parameter.copy_(words[draw].float().view_as(parameter))
    model.break_symmetry(generator)


@torch.no_grad()
def init_near_zero(model: UserModel, seed: int) -> None:
    """Initialise linear heads at 0, except centres and bases, which gradients could not move from there."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Cluster):
        model.centres.normal_(std=0.1 / model.dim**0.5, generator=generator)
    if isinstance(model, LowRank):
        model.basis.normal_(std=0.1 / model.dim**0.5, generator=generator)
    model.break_symmetry(generator)


def user_model_class(config: UserConfig) -> type[UserModel]:
    """The class of the config's user model."""
    classes: dict[str, type[UserModel]] = {
        "uniform": Uniform,
        "cluster": Cluster,
        "low_rank": LowRank,
        "stack": Stack,
        "bayes": Bayes,
    }
    return classes.get(config.kind) or (Individual if config.generic else Separate)


def build_user_model(config: UserConfig, n_rows: int, dim: int, text_dim: int = 0) -> UserModel:
    """Build the config's user model (section 4.3), not initialised; `text_dim` as of `Bayes`."""
    if config.kind == "uniform":
        return Uniform(n_rows, config.num_virtual_tokens, dim)
    if config.kind == "cluster":
        return Cluster(n_rows, config.num_virtual_tokens, dim, config.clusters, config.softmax)
    if config.kind == "low_rank":
        return LowRank(n_rows, config.num_virtual_tokens, dim, min(config.rank, dim))
    if config.kind == "stack":
        return Stack(n_rows, config.num_virtual_tokens, dim)
    if config.kind == "bayes":
        return Bayes(n_rows, config.num_virtual_tokens, dim, min(config.rank, dim), text_dim)
    return (Individual if config.generic else Separate)(n_rows, config.num_virtual_tokens, dim)
