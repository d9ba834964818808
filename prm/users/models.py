"""From a row of the user index to the user's embedding (section 4.3)."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from prm.users.bayes.posterior import Posterior
from prm.users.bayes.quadrature import inflated, integrated
from prm.users.text_prior import TextPrior

_LEAST = 1e-6  # probability that a margin is allowed to reach
_MOST_KEPT = 64  # directions of each person in which more than the prior is known


class UserModel(nn.Module):
    """Row to embedding: `forward(rows [n]) -> [n, tokens, dim]`, float32.

    Parameters fall into two groups. `shared()` holds what everyone uses. `per_row()` holds tables whose
    first axis is the row: each person's numbers are trained by that person's comparisons alone.
    """

    def __init__(self, n_rows: int, tokens: int, dim: int):
        super().__init__()
        self.n_rows, self.tokens, self.dim = n_rows, tokens, dim
        self._room: dict[str, Tensor] = {}  # tables with room for more rows, by name

    def forward(self, rows: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define forward")

    def shared(self) -> list[nn.Parameter]:
        """Parameters used by every row."""
        return []

    def per_row(self) -> list[nn.Parameter]:
        """Tables [n_rows, ...] that hold one person per row."""
        return []

    def shared_penalty(self) -> Tensor:
        """Sum of squares of the shared parameters, a scalar."""
        return sum((p.square().sum() for p in self.shared()), torch.zeros(()))

    def row_penalty(self, rows: Tensor) -> Tensor:
        """Sum of squares of each row's own parameters, [n]."""
        zero = torch.zeros(len(rows), device=rows.device)
        return sum((p[rows].square().flatten(1).sum(1) for p in self.per_row()), zero)

    @property
    def n_parameters(self) -> int:
        """Numbers that people are made of, N_u (section 4.3); row 0 counts where it is trained."""
        tables = sum(p.numel() - (0 if self.row_zero_needs_training else p[0].numel()) for p in self.per_row())
        return tables + sum(p.numel() for p in self.shared())

    @property
    def row_zero_needs_training(self) -> bool:
        """True where the unknown user has parameters of its own, which alpha = 1 leaves untrained."""
        return False

    def margins(self, differences: Tensor, rows: Tensor, base: Tensor | None = None) -> Tensor:
        """Logit of P(first preferred), [n], from differences of hidden states [n, dim]: <e_u, difference> + base."""
        margin = (self(rows)[:, 0] * differences).sum(-1)
        return margin if base is None else margin + base

    @torch.no_grad()
    def set_row(self, row: int, source_rows: Tensor) -> None:
        """Give `row` the mean of the own parameters of `source_rows`."""
        for table in self.per_row():
            table[row] = table[source_rows].mean(0)

    @torch.no_grad()
    def forget_row(self, row: int) -> None:
        """Overwrite a person's own numbers with the unknown user's."""
        for table in self.per_row():
            table[row] = table[0]

    @torch.no_grad()
    def subset(self, rows: Tensor) -> Self:
        """A copy with these rows alone, in their order: row 0 has to come first. What is shared is shared still."""
        subset = copy.copy(self)
        subset._parameters, subset._room = dict(self._parameters), {}
        for name, table in self.named_parameters():
            if any(table is own for own in self.per_row()):
                subset._parameters[name] = nn.Parameter(table[rows].clone(), requires_grad=table.requires_grad)
        subset.n_rows = len(rows)
        return subset

    @torch.no_grad()
    def scatter_(self, rows: Tensor, subset: "UserModel") -> None:
        """Write the people of a copy that `subset(rows)` made back to their rows; row 0 stays."""
        for table, own in zip(self.per_row(), subset.per_row(), strict=True):
            table[rows[1:]] = own[1:]

    @torch.no_grad()
    def grow(self, n_rows: int) -> None:
        """Add rows that start as the unknown user; old rows keep their numbers to the bit.

        The tables move to memory with an eighth to spare, so that further rows are added without moving them again.
        """
        for name, table in list(self.named_parameters()):
            if any(table is own for own in self.per_row()):
                room = self._room.get(name)
                if room is None or room.data_ptr() != table.data_ptr() or len(room) < n_rows:
                    room = table.new_empty(n_rows + self.n_rows // 8, *table.shape[1:])
                    room[: self.n_rows] = table
                room[self.n_rows : n_rows] = table[0]
                self._room[name] = room
                setattr(self, name, nn.Parameter(room[:n_rows], requires_grad=table.requires_grad))
        self.n_rows = n_rows


class Uniform(UserModel):
    """Example 1: the same embedding for everyone; empty with `tokens` = 0, the vanilla reward model."""

    def __init__(self, n_rows: int, tokens: int, dim: int):
        super().__init__(n_rows, tokens, dim)
        self.embedding = nn.Parameter(torch.zeros(tokens, dim))

    def forward(self, rows: Tensor) -> Tensor:
        return self.embedding.expand(len(rows), -1, -1)

    def shared(self) -> list[nn.Parameter]:
        return [self.embedding]


class Individual(UserModel):
    """Example 2: e_i = e_0 + o_i, with o_0 = 0: the unknown user is e_0."""

    def __init__(self, n_rows: int, tokens: int, dim: int):
        super().__init__(n_rows, tokens, dim)
        self.generic = nn.Parameter(torch.zeros(tokens, dim))
        self.offsets = nn.Parameter(torch.zeros(n_rows, tokens, dim))

    def forward(self, rows: Tensor) -> Tensor:
        known = (rows > 0).to(self.offsets.dtype)[:, None, None]  # row 0 stays at e_0, to the bit
        return self.generic + self.offsets[rows] * known

    def shared(self) -> list[nn.Parameter]:
        return [self.generic]

    def per_row(self) -> list[nn.Parameter]:
        return [self.offsets]


class Separate(UserModel):
    """Example 2 without e_0: each row, the unknown user's included, is an embedding of its own."""

    def __init__(self, n_rows: int, tokens: int, dim: int):
        super().__init__(n_rows, tokens, dim)
        self.embeddings = nn.Parameter(torch.zeros(n_rows, tokens, dim))

    def forward(self, rows: Tensor) -> Tensor:
        return self.embeddings[rows]

    def per_row(self) -> list[nn.Parameter]:
        return [self.embeddings]

    @property
    def row_zero_needs_training(self) -> bool:
        return True


class Cluster(UserModel):
    """Example 3: e_i = V w_i, a mixture of K centres; weights free as in the paper, or through a softmax."""

    def __init__(self, n_rows: int, tokens: int, dim: int, clusters: int, softmax: bool):
        super().__init__(n_rows, tokens, dim)
        self.softmax = softmax
        self.centres = nn.Parameter(torch.zeros(clusters, tokens, dim))
        self.weights = nn.Parameter(torch.full((n_rows, clusters), 0.0 if softmax else 1.0 / clusters))

    def forward(self, rows: Tensor) -> Tensor:
        weights = self.weights[rows]
        return torch.einsum("nk,ktd->ntd", weights.softmax(-1) if self.softmax else weights, self.centres)

    def shared(self) -> list[nn.Parameter]:
        return [self.centres]

    def per_row(self) -> list[nn.Parameter]:
        return [self.weights]

    @property
    def row_zero_needs_training(self) -> bool:
        return True


class Bayes(UserModel):
    """Empirical-Bayes users: offsets in a subspace, each known up to a normal distribution (`prm.users.bayes`).

    e_u = (steepness e_0 + basis mean_u) / (flatness_u temper_u). Rewards are then logits as they are for an average
    pair once what is not known of a person is averaged over; `margins` averages pair by pair. A person of whom nothing
    is known has flatness = steepness: e_0, to the bit. Nothing here is trained by gradients.

    Tensors: generic [1, dim]; basis [dim, rank]; prior [rank, rank], the covariance of people; moment [rank, rank], the
    mean of z z' over the training pairs; per row means [n_rows, rank], factors [n_rows, rank, kept], by which what is
    known of a person narrows the prior (`prm.users.bayes.posterior.Posterior`), and flatness. `temperature` divides the
    logits of people, by as much of its logarithm as the share of an average pair's variance that is known of them.

    Args:
        text_dim: width of the hidden states of `user_text`, where it moves a user's prior (`text_prior`); 0 where it
            does not.
    """

    def __init__(self, n_rows: int, tokens: int, dim: int, rank: int, text_dim: int = 0):
        super().__init__(n_rows, tokens, dim)
        self.generic, self.basis = _kept(1, dim), _kept(dim, rank)
        self.prior, self.moment = _kept(rank, rank), _kept(rank, rank)
        self.kept = min(rank, _MOST_KEPT)
        self.means, self.factors = _kept(n_rows, rank), _kept(n_rows, rank, self.kept)
        self.flatness = nn.Parameter(torch.ones(n_rows), requires_grad=False)
        self.temperature = nn.Parameter(torch.ones(()), requires_grad=False)
        self.text_prior = TextPrior(text_dim, rank, self.kept) if text_dim else None

    @property
    def n_parameters(self) -> int:
        """Numbers that people are made of: everybody's mean, their covariance, e_0, and what is made of their texts."""
        rank = len(self.prior)
        map_ = self.text_prior.weight.numel() if self.text_prior is not None else 0
        return self.means.numel() - rank + rank * (rank + 1) // 2 + self.generic.numel() + map_

    def forward(self, rows: Tensor) -> Tensor:
        flat = (self.flatness[rows] * self.temper(rows, self.temperature))[:, None]
        return (self.generic * (self.flatness[0] / flat) + self.means[rows] @ self.basis.T / flat)[:, None]

    def per_row(self) -> list[nn.Parameter]:
        return [self.means, self.factors, self.flatness]

    @torch.no_grad()
    def margins(self, differences: Tensor, rows: Tensor, base: Tensor | None = None) -> Tensor:
        """Logit of P(first preferred), averaged over what is not known of each person, [n].

        Args:
            differences: h of the first less that of the second text, [n, dim].
            base: margin that the texts have before anybody's taste, [n].
        """
        logit, variance = self.logits(differences, rows, base)
        # where a person is the prior, the two averages cancel but for rounding
        known = torch.logit(integrated(logit, variance).clamp(_LEAST, 1.0 - _LEAST)) / self.temper(
            rows, self.temperature
        )
        return torch.where(rows == 0, self._population(differences, base), known)

    @torch.no_grad()
    def logits(self, differences: Tensor, rows: Tensor, base: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance [n] of each person's own logit of P(first preferred); arguments as of `margins`."""
        z = differences @ self.basis
        at_zero = inflated(self._population(differences, base), ((z @ self.prior) * z).sum(-1))
        return at_zero + (z * self.means[rows]).sum(-1), self._variances(z, rows)

    @torch.no_grad()
    def deviations(self, states: Tensor, rows: Tensor) -> Tensor:
        """Standard deviation of each reward <e_u, h>, [n], for h [n, dim]: how far the person's may be from it."""
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
        """What is known of the people of `rows` [m]: mean [m, rank] and factor [m, rank, kept]."""
        self.means[rows], self.factors[rows] = mean, factor
        self.flatness[rows] = self._flatness(factor)

    @torch.no_grad()
    def set_text_prior(self, rows: Tensor, states: Tensor) -> None:
        """What texts say, hidden states [m, text_dim], of those people of `rows` [m] of whom nothing is known yet."""
        new = (~self.known(rows)).nonzero().squeeze(1)
        if self.text_prior is not None and len(new):
            self.set_posterior(rows[new], *self.text_prior(states[new]))

    def known(self, rows: Tensor) -> Tensor:
        """Of whom more is known than what people are like at large, bool [m]."""
        return self.factors[rows].flatten(1).any(1)

    @torch.no_grad()
    def set_prior(self, covariance: Tensor) -> None:
        """The covariance of people, which is all that is known of the unknown user; everybody's own stays."""
        self.prior.copy_(covariance)
        rows = torch.zeros(1, dtype=torch.long, device=covariance.device)
        self.set_posterior(rows, torch.zeros_like(covariance[:1]), torch.zeros_like(self.factors[:1]))

    def temper(self, rows: Tensor, temperature: float | Tensor) -> Tensor:
        """What each person's logits are divided by, [n]; 1 for whom nothing is known of."""
        return temperature ** self.share_known(rows)

    def share_known(self, rows: Tensor) -> Tensor:
        """Share of an average pair's variance that is known of each person, [n]."""
        squares = self.flatness.square()
        return (squares[0] - squares[rows]) / (squares[0] - 1.0).clamp_min(1e-12)

    def _flatness(self, factor: Tensor) -> Tensor:
        """By how much averaging flattens the logit of an average pair (probit approximation), [m]."""
        reduction = ((self.moment @ factor) * factor).sum((1, 2))
        return (1.0 + torch.pi / 8.0 * ((self.prior * self.moment).sum() - reduction).clamp_min(0.0)).sqrt()


def _kept(*shape: int) -> nn.Parameter:
    """Numbers that are saved and moved with a model, and not trained."""
    return nn.Parameter(torch.zeros(*shape), requires_grad=False)


@torch.no_grad()
def init_from_token_embeddings(model: UserModel, words: Tensor, seed: int) -> None:
    """Start embeddings at rows of the word table [V, dim]: a soft prompt then begins as plausible input.

    e_0, the centres and separate rows take words drawn without replacement where the table allows;
    offsets stay 0 and cluster weights start near uniform.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name in ("offsets", "weights") or parameter.numel() == 0:
            continue
        n = parameter.numel() // model.dim
        draw = torch.randperm(len(words), generator=generator)[torch.arange(n) % len(words)]
        parameter.copy_(words[draw].float().view_as(parameter))
    _break_symmetry(model, generator)


@torch.no_grad()
def init_near_zero(model: UserModel, seed: int) -> None:
    """Start linear heads at 0, but for cluster centres, which must differ from each other to be told apart."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Cluster):
        model.centres.normal_(std=0.1 / model.dim**0.5, generator=generator)
    _break_symmetry(model, generator)


def _break_symmetry(model: UserModel, generator: torch.Generator) -> None:
    if isinstance(model, Cluster):
        spread = 0.3 if model.softmax else 0.3 / model.weights.shape[1]  # a third of the mean weight either way
        model.weights.add_(torch.randn(model.weights.shape, generator=generator) * spread)
