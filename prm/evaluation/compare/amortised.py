"""A user is what a network makes of their comparisons; nobody has parameters of their own.

e_u = e_0 + W z_u. z_u is encoded from the set of the user's comparisons, as in VPL (Poddar et al. 2024) and GPO (Zhao
et al. 2023): z_u = R tanh(sum_j w_j phi(v_j) / (k + sum_j w_j)), which is 0 for no comparisons. v_j holds the
difference of the two texts, in a few principal axes, times the label and times what e_0 leaves of the label; so it
stays the same if the two texts and the label are swapped. In training a random share of each user's comparisons is
encoded, and the others are predicted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from prm.config import FeatureSpec, TrainConfig, format_features
from prm.evaluation.compare.networks import descend, dropped, random_matrix
from prm.training.heads.grid_search import HeadData, head_states, new_model
from prm.training.heads.objective import Penalty, fit_head
from prm.training.losses import bradley_terry, weighted_mean

_STOPS = (10, 25, 50, 100, 200)  # steps
_RATE = 3e-3
_WIDTH, _SIZE = 64, 8  # of phi, of z
_DROPOUT = 0.2
_SHRINK = 5.0  # k at the start, comparisons


@dataclass(frozen=True)
class AmortisedSetting:
    """How the encoder is trained.

    Args:
        features: hidden states that it reads.
        head_l2: penalty of e_0, a uniform head fitted before.
        axes: number of principal axes of the texts.
        l2: 0.5 l2 |weights of the network|^2 is added to the summed loss.
    """

    features: FeatureSpec
    head_l2: float
    axes: int
    l2: float
    config: TrainConfig
    n_rows: int

    @property
    def stops(self) -> int:
        return len(_STOPS)

    def path(self, data: HeadData) -> Iterator["AmortisedFit"]:
        texts = head_states(data, self.features, "linear", self.config)
        rewards = self._generic(data, texts)
        x = principal(texts, torch.unique(torch.cat([data.chosen, data.rejected])), self.axes)
        draw = torch.Generator().manual_seed(self.config.seed)
        encoder = Encoder.random(x.shape[1], draw)
        start = AmortisedFit(x, rewards, encoder, torch.zeros(self.n_rows, _SIZE))
        v, z = start.elements(data), x[data.chosen] - x[data.rejected]
        generic = start.generic(data)

        def loss() -> Tensor:
            context = data.weight * in_context(data.rows, self.n_rows, draw)
            users = encoder.encode(v, data.rows, context, self.n_rows, draw)
            margin = generic + encoder.added(users[data.rows], z)
            losses = bradley_terry(margin, data.p_chosen)
            others = torch.where(context > 0.0, 0.0, data.weight)
            penalty = 0.5 * self.l2 / data.weight.sum() * sum(p.square().sum() for p in encoder.matrices())
            return weighted_mean(losses, others.clamp_min(1e-9)) + penalty

        for _ in descend(encoder.parameters(), loss, _STOPS, _RATE):
            yield replace(start, encoder=encoder.copy()).with_new_users(data)

    def to_dict(self, stop: int) -> dict[str, object]:
        return {
            "features": format_features(self.features),
            "head_l2": self.head_l2,
            "axes": self.axes,
            "l2": self.l2,
            "steps": _STOPS[stop],
        }

    def _generic(self, data: HeadData, texts: Tensor) -> Tensor:
        """Rewards of all texts for the generic user, [t]."""
        model = new_model(self.config.of_kind("uniform"), self.n_rows, texts.shape[1])
        fit_head(model, data.pairs(texts), self.config.alpha, Penalty(self.head_l2, 0.0))
        with torch.no_grad():
            rewards = texts @ model(torch.zeros(1, dtype=torch.long))[0, 0]
        return rewards if data.base is None else rewards + data.base


@dataclass(frozen=True)
class Encoder:
    """phi (`first`, `bias`, `second`, `linear`), k (`log_shrink`), R (`to_z`) and W (`out`)."""

    first: Tensor
    bias: Tensor
    second: Tensor
    linear: Tensor
    log_shrink: Tensor
    to_z: Tensor
    out: Tensor

    @classmethod
    def random(cls, axes: int, draw: torch.Generator) -> "Encoder":
        """A start that leaves everybody near the generic user."""
        return cls(
            random_matrix(_WIDTH, 2 * axes, draw),
            torch.zeros(_WIDTH),
            random_matrix(_WIDTH, _WIDTH, draw),
            random_matrix(_WIDTH, 2 * axes, draw),
            torch.tensor(_SHRINK).log(),
            random_matrix(_SIZE, _WIDTH, draw),
            random_matrix(axes, _SIZE, draw, 0.1),
        )

    def parameters(self) -> list[Tensor]:
        return [*self.matrices(), self.bias, self.log_shrink]

    def matrices(self) -> list[Tensor]:
        return [self.first, self.second, self.linear, self.to_z, self.out]

    def copy(self) -> "Encoder":
        """One that further training leaves as it is."""
        return Encoder(**{name: tensor.detach().clone() for name, tensor in vars(self).items()})

    def encode(
        self, v: Tensor, rows: Tensor, weight: Tensor, n_rows: int, draw: torch.Generator | None = None
    ) -> Tensor:
        """z of each row, [n_rows, 8], from the comparisons v [n, 2 a]; `draw` only while it trains."""
        hidden = F.gelu(v @ self.first.T + self.bias)
        if draw is not None:
            hidden = dropped(hidden, _DROPOUT, draw)
        parts = torch.cat([hidden, v], 1) * weight[:, None]
        sums = torch.zeros(n_rows, parts.shape[1]).index_add(0, rows, parts)
        summed = sums @ torch.cat([self.second, self.linear], 1).T  # after the sum: far fewer rows
        count = torch.zeros(n_rows).index_add(0, rows, weight)
        return torch.tanh(summed / (self.log_shrink.exp() + count)[:, None]) @ self.to_z.T

    def added(self, users: Tensor, z: Tensor) -> Tensor:
        """<W z_u, x> of comparisons, [n], from their users' z [n, 8] and their differences [n, a]."""
        return (users * (z @ self.out)).sum(1)


@dataclass(frozen=True)
class AmortisedFit:
    """Texts in principal axes [t, a], their rewards for the generic user [t], and z of each row: 0 if unknown."""

    x: Tensor
    rewards: Tensor
    encoder: Encoder
    users: Tensor

    def margins(self, data: HeadData) -> Tensor:
        z = self.x[data.chosen] - self.x[data.rejected]
        return self.generic(data) + self.encoder.added(self.users[data.rows], z)

    @torch.no_grad()
    def with_new_users(self, data: HeadData) -> "AmortisedFit":
        known, users = torch.unique(data.rows[data.rows > 0]), self.users.clone()
        encoded = self.encoder.encode(self.elements(data), data.rows, data.weight, len(users))
        users[known] = encoded[known]
        return replace(self, users=users)

    def generic(self, data: HeadData) -> Tensor:
        """Margins for a user of whom nothing is known, [n]."""
        return self.rewards[data.chosen] - self.rewards[data.rejected]

    def elements(self, data: HeadData) -> Tensor:
        """v of each comparison, [n, 2 a]."""
        z = self.x[data.chosen] - self.x[data.rejected]
        left = data.p_chosen - torch.sigmoid(self.generic(data))
        return torch.cat([left[:, None] * z, (2.0 * data.p_chosen - 1.0)[:, None] * z], 1)


def in_context(rows: Tensor, n_rows: int, draw: torch.Generator) -> Tensor:
    """Which comparisons are encoded, 1 or 0, [n]: of each user a share of their own, more often a small one."""
    share = torch.rand(n_rows, generator=draw).square()
    return (torch.rand(len(rows), generator=draw) < share[rows]).float()


def principal(texts: Tensor, used: Tensor, axes: int) -> Tensor:
    """All texts [t, d] in the principal axes of those at `used`, [t, min(axes, d)], with a mean square of 1."""
    _, directions = torch.linalg.eigh(texts[used].T @ texts[used])
    x = texts @ directions[:, -axes:]
    return x / x[used].square().mean().sqrt()
