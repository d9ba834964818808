"""The user model `stack`: the uniform head plus each user's offset, weighted by the number of comparisons."""

from torch import Tensor

from prm.users.user_model import UserModel, untrained
from prm.users.user_weight import OCTAVES, weight_at


class Stack(UserModel):
    """e_i = e_0 + w(n_i) o_i: e_0 is the uniform model's head, o_i an offset, and its weight w depends on n_i.

    Tensors: generic [1, dim], e_0; weights [`OCTAVES`], w at 1, 2, 4, ... comparisons (`prm.users.user_weight`);
    penalties [2], user_l2 and the variance of the factors by which users scale e_0 (see
    `prm.training.heads.ridge_offsets`); per row offsets [n_rows, 1, dim] and counts [n_rows], the number n_i of
    comparisons that o_i was fitted to. Nothing here is trained by gradients.
    """

    PER_ROW = ("offsets", "counts")

    def __init__(self, n_rows: int, tokens: int, dim: int):
        super().__init__(n_rows, tokens, dim)
        self.generic, self.weights, self.penalties = untrained(1, dim), untrained(OCTAVES), untrained(2)
        self.offsets, self.counts = untrained(n_rows, 1, dim), untrained(n_rows)

    @property
    def n_parameters(self) -> int:
        """Number of user parameters: e_0, the weights, and the offsets of all users."""
        return self.generic.numel() + OCTAVES + self.offsets.numel() - self.dim

    @property
    def all_alike(self) -> bool:
        """Whether the weight is 0 for any number of comparisons."""
        return not self.weights.any()

    def forward(self, rows: Tensor) -> Tensor:
        return self.generic + weight_at(self.weights, self.counts[rows])[:, None, None] * self.offsets[rows]
