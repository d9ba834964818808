"""The fast path: linear heads on cached features, fitted in seconds.

With the backbone frozen the individual and uniform objectives are convex, so the whole objective goes to
L-BFGS: no learning rate, no order of rows, no seed (clusters start from one).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prm.training.losses import personalized_bradley_terry
from prm.users.models import Uniform, UserModel

_CHUNK = 65536  # pairs whose embeddings are gathered at once
_TABLE_PER_PAIR = 16  # one product of everybody with every text costs less than gathering a head per pair, up to here
_MAX_STEPS = 500
_KEPT_NUMBERS = 2**28  # 1 GiB of float32


@dataclass(frozen=True)
class PairFeatures:
    """Comparisons as a head sees them.

    Args:
        texts: what heads see of the distinct texts, float32 [t, d] (`prm.models.reward_model.HeadInput`).
        chosen, rejected: positions in `texts`, int64 [n].
        rows: row of the person who judged, int64 [n].
        p_chosen, weight: label and weight, float32 [n].
        base: reward that each text has before the head adds to it, float32 [t]; none if left out.
    """

    texts: Tensor
    chosen: Tensor
    rejected: Tensor
    rows: Tensor
    p_chosen: Tensor
    weight: Tensor
    base: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> "PairFeatures":
        """The pairs at `index`, over the same texts."""
        picked = {name: getattr(self, name)[index] for name in ("chosen", "rejected", "rows", "p_chosen", "weight")}
        return replace(self, **picked)

    def differences(self) -> Iterator[tuple[slice, Tensor]]:
        """Chunk by chunk, hidden state of the chosen less that of the rejected text, [n, d]."""
        for start in range(0, len(self), _CHUNK):
            part = slice(start, start + _CHUNK)
            yield part, self.texts[self.chosen[part]] - self.texts[self.rejected[part]]


@dataclass(frozen=True)
class Penalty:
    """Strengths in 0.5 l2 |shared|^2 + 0.5 user_l2 sum_i |own_i|^2, beside the summed (not mean) loss."""

    l2: float
    user_l2: float


Differences = Iterable[tuple[slice, Tensor]]


def margins(
    model: UserModel, pairs: PairFeatures, generic: bool = False, differences: Differences | None = None
) -> Tensor:
    """r(chosen) - r(rejected), [n], for the judges or for the unknown user.

    `differences`, if given, are those of the pairs, computed before.
    """
    if generic or isinstance(model, Uniform):
        rewards = pairs.texts @ model(torch.zeros(1, dtype=torch.long, device=pairs.rows.device))[0, 0]
        margin = rewards[pairs.chosen] - rewards[pairs.rejected]
    elif _table_is_small(model, pairs):
        n_texts = len(pairs.texts)
        heads = model(torch.arange(model.n_rows, device=pairs.rows.device))[:, 0]
        rewards = (heads @ pairs.texts.T).flatten()
        first = pairs.rows * n_texts
        margin = rewards.index_select(0, first + pairs.chosen) - rewards.index_select(0, first + pairs.rejected)
    else:
        parts = differences if differences is not None else pairs.differences()
        margin = torch.cat([(model(pairs.rows[part])[:, 0] * d).sum(-1) for part, d in parts])
    return margin if pairs.base is None else margin + pairs.base[pairs.chosen] - pairs.base[pairs.rejected]


def _table_is_small(model: UserModel, pairs: PairFeatures) -> bool:
    return model.n_rows * len(pairs.texts) <= _TABLE_PER_PAIR * len(pairs)


def objective(
    model: UserModel,
    pairs: PairFeatures,
    alpha: float,
    penalty: Penalty,
    differences: Differences | None = None,
) -> Tensor:
    """(summed weighted two-term loss + penalties) / summed weight, in nats per unit of weight (section F.2)."""
    one_term = isinstance(model, Uniform)
    everyone = torch.arange(model.n_rows, device=pairs.rows.device)
    penalties = 0.5 * (penalty.l2 * model.shared_penalty() + penalty.user_l2 * model.row_penalty(everyone).sum())
    user = margins(model, pairs, differences=differences) if alpha > 0.0 and not one_term else None
    generic = margins(model, pairs, generic=True) if alpha < 1.0 or one_term else None
    losses = personalized_bradley_terry(user, generic, pairs.p_chosen, alpha)
    return (losses @ pairs.weight + penalties) / pairs.weight.sum()


def fit_head(model: UserModel, pairs: PairFeatures, alpha: float, penalty: Penalty, tolerance: float = 1e-8) -> int:
    """Minimise the objective over the user model in place, until a step gains less than `tolerance` nats.

    Returns the number of steps. With alpha = 1, which trains nothing of an unknown user with numbers of its
    own, that row becomes the mean of the trained ones.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    kept = _kept_differences(model, pairs)
    steps = _minimise(parameters, lambda: objective(model, pairs, alpha, penalty, kept), tolerance)
    if alpha == 1.0 and model.row_zero_needs_training:
        model.set_row(0, torch.unique(pairs.rows[pairs.rows > 0]))
    return steps


def fit_rows(model: UserModel, pairs: PairFeatures, user_l2: float) -> int:
    """Fit the own numbers of the people in `pairs`, in place; nobody else's and nothing shared moves by a bit.

    They start where they are, and 0.5 user_l2 |own - start|^2 beside the summed loss holds them there. Returns the
    number of steps.
    """
    tables = model.per_row()
    starts = [table.detach().clone() for table in tables]
    kept = _kept_differences(model, pairs)

    def loss() -> Tensor:
        user = margins(model, pairs, differences=kept)
        moved = sum((table - start).square().sum() for table, start in zip(tables, starts, strict=True))
        losses = personalized_bradley_terry(user, None, pairs.p_chosen, alpha=1.0)
        return (losses @ pairs.weight + 0.5 * user_l2 * moved) / pairs.weight.sum()

    return _minimise(tables, loss, 1e-8)  # a row without a gradient gets a step of exactly 0


def _kept_differences(model: UserModel, pairs: PairFeatures) -> list[tuple[slice, Tensor]] | None:
    """They do not change from step to step: kept where they are needed and fit in memory."""
    gathered = not isinstance(model, Uniform) and not _table_is_small(model, pairs)
    return list(pairs.differences()) if gathered and len(pairs) * pairs.texts.shape[1] <= _KEPT_NUMBERS else None


def _minimise(parameters: list[nn.Parameter], loss: Callable[[], Tensor], tolerance: float) -> int:
    """L-BFGS over the parameters, in place; returns the number of steps."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_MAX_STEPS,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-6,
        tolerance_change=tolerance,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    optimizer.zero_grad()
    return int(optimizer.state[parameters[0]].get("n_iter", 0))
