"""One hidden layer for everybody, and offsets of each user on its activations.

r_u(x) = <e_0 + o_u, a(x)>, a(x) = gelu(A x + b). A, b and e_0 are trained by the uniform loss; then each user's o_u is
a penalised logistic regression on a(chosen) - a(rejected).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from prm.config import FeatureSpec, TrainConfig, format_features
from prm.evaluation.compare.networks import descend, dropped, random_matrix
from prm.training.heads.grid_search import HeadData, head_states
from prm.training.heads.objective import PairFeatures
from prm.training.heads.ridge_offsets import OffsetProblem
from prm.training.losses import bradley_terry, weighted_mean

_STOPS = (50, 100, 200)  # steps
_BATCH, _RATE = 1024, 1e-3


@dataclass(frozen=True)
class MlpSetting:
    """How the layer is trained.

    Args:
        features: hidden states that it reads.
        hidden: size of the layer.
        dropout: share of inputs and of activations that a step leaves out.
        l2: 0.5 l2 |A, e_0|^2 is added to the summed loss.
        user_l2: penalties on offsets to try at each stop.
    """

    features: FeatureSpec
    hidden: int
    dropout: float
    l2: float
    user_l2: Sequence[float]
    config: TrainConfig
    n_rows: int

    @property
    def stops(self) -> int:
        return len(_STOPS) * len(self.user_l2)

    def path(self, data: HeadData) -> Iterator["MlpFit"]:
        texts = head_states(data, self.features, "linear", self.config)
        for activations, head in self._trunks(data.pairs(texts)):
            generic = MlpFit(activations, head, torch.zeros(self.n_rows, self.hidden), 1.0)
            problem = generic.offset_problem(data)
            for user_l2 in self.user_l2:
                yield generic.with_offsets(problem.fit(user_l2), user_l2)

    def to_dict(self, stop: int) -> dict[str, object]:
        step, penalty = divmod(stop, len(self.user_l2))
        return {
            "features": format_features(self.features),
            "hidden": self.hidden,
            "dropout": self.dropout,
            "l2": self.l2,
            "user_l2": self.user_l2[penalty],
            "steps": _STOPS[step],
        }

    def _trunks(self, pairs: PairFeatures) -> Iterator[tuple[Tensor, Tensor]]:
        """(activations of all texts [t, h], e_0 [h]) at each stop."""
        draw = torch.Generator().manual_seed(self.config.seed)
        layer, bias = random_matrix(self.hidden, pairs.texts.shape[1], draw), torch.zeros(self.hidden)
        head = random_matrix(1, self.hidden, draw, 0.1)[0]
        total = pairs.weight.sum()

        def loss() -> Tensor:
            batch = pairs.take(torch.randint(len(pairs), (min(_BATCH, len(pairs)),), generator=draw))
            used, position = torch.unique(torch.stack([batch.chosen, batch.rejected]), return_inverse=True)
            inputs = dropped(batch.texts[used], self.dropout, draw)
            rewards = dropped(F.gelu(inputs @ layer.T + bias), self.dropout, draw) @ head
            if batch.base is not None:
                rewards = rewards + batch.base[used]
            losses = bradley_terry(rewards[position[0]] - rewards[position[1]], batch.p_chosen)
            return weighted_mean(losses, batch.weight) + 0.5 * self.l2 / total * (layer.square().sum() + head @ head)

        for _ in descend([layer, bias, head], loss, _STOPS, _RATE):
            with torch.no_grad():
                yield F.gelu(pairs.texts @ layer.T + bias), head.detach().clone()


@dataclass(frozen=True)
class MlpFit:
    """Activations of all texts [t, h], the generic head e_0 [h], and offsets [rows, h]: 0 for whom nothing is known."""

    activations: Tensor
    head: Tensor
    offsets: Tensor
    user_l2: float

    def margins(self, data: HeadData) -> Tensor:
        parts = []
        for part, z in data.pairs(self.activations).differences():
            parts.append((z * self.offsets[data.rows[part]]).sum(1))
        return self.generic(data) + torch.cat(parts)

    def with_new_users(self, data: HeadData) -> "MlpFit":
        new, offsets = torch.unique(data.rows), self.offsets.clone()
        offsets[new] = self.offset_problem(data).fit(self.user_l2)[new]
        return self.with_offsets(offsets, self.user_l2)

    def with_offsets(self, offsets: Tensor, user_l2: float) -> "MlpFit":
        """The same activations with these offsets; the generic user, row 0, keeps none."""
        offsets[0] = 0.0
        return replace(self, offsets=offsets, user_l2=user_l2)

    def offset_problem(self, data: HeadData) -> OffsetProblem:
        """What the offsets of the users in `data` are fitted to."""
        z = self.activations[data.chosen] - self.activations[data.rejected]
        labels = (data.p_chosen, data.weight)
        return OffsetProblem(z, data.rows, self.generic(data), *labels, self.head, len(self.offsets))

    def generic(self, data: HeadData) -> Tensor:
        """Margins for a user of whom nothing is known, [n]."""
        rewards = self.activations @ self.head
        if data.base is not None:
            rewards = rewards + data.base
        return rewards[data.chosen] - rewards[data.rejected]
