"""The user models that gradients train: the paper's examples 1 to 3, and low rank."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prm.users.user_model import UserModel


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
    """Example 3: e_i = V w_i, a mixture of K centres; weights free as in the paper, or through a softmax.

    Penalties are those of `Individual`, on e_0 and e_i - e_0. Penalties on V and w_i would leave the generic user free:
    a long w_0 with short centres costs less and less.
    """

    SHARED = EMBEDDINGS = ("centres",)
    PER_ROW = ("weights",)
    CAN_AVERAGE = False  # centres of different fits do not correspond

    def __init__(self, n_rows: int, tokens: int, dim: int, clusters: int, softmax: bool):
        super().__init__(n_rows, tokens, dim)
        self.softmax = softmax
        self.centres = nn.Parameter(torch.zeros(clusters, tokens, dim))
        self.weights = nn.Parameter(torch.full((n_rows, clusters), 0.0 if softmax else 1.0 / clusters))

    def forward(self, rows: Tensor) -> Tensor:
        return torch.einsum("nk,ktd->ntd", self._mixed(self.weights[rows]), self.centres)

    def extra_repr(self) -> str:
        """What the model is, in a few words."""
        return f"{super().extra_repr()}, clusters={self.weights.shape[1]}, softmax={self.softmax}"

    def loadings(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self._mixed(self.weights[rows]), self.centres[:, 0]

    def shared_penalty(self) -> Tensor:
        return torch.einsum("k,ktd->td", self._mixed(self.weights[0]), self.centres).square().sum()

    def row_penalty(self, rows: Tensor) -> Tensor:
        return self.squared_distances(rows, [self.weights[:1]])

    def squared_distances(self, rows: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Between embeddings: |V (w_i - w)|^2."""
        moved = self._mixed(self.weights[rows]) - self._mixed(others[0])
        centres = self.centres.flatten(1)
        return (moved @ (centres @ centres.T) * moved).sum(1)

    def _mixed(self, weights: Tensor) -> Tensor:
        return weights.softmax(-1) if self.softmax else weights

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
