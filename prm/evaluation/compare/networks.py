"""Small networks on frozen hidden states: settings and number of steps are chosen by cross-validation.

A training passes several stops; each is a model. No held-out comparison of the part decides where it ends.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prm.evaluation.compare.problem import take
from prm.training.heads.grid_search import HeadData, rounds_of, scored, side_by_side
from prm.training.heads.settings_choice import held_out_margins


class Network(Protocol):
    """A network that was fitted to comparisons of the log (`prm.evaluation.compare.contenders.Fitted`)."""

    def margins(self, data: HeadData) -> Tensor: ...

    def with_new_users(self, data: HeadData) -> "Network": ...


class Setting(Protocol):
    """How a network is trained. The same comparisons give the same networks."""

    @property
    def stops(self) -> int:
        """How many networks one training gives."""
        ...

    def path(self, data: HeadData) -> Iterator[Network]:
        """Train on comparisons, and yield the network at each stop."""
        ...

    def to_dict(self, stop: int) -> dict[str, object]:
        """The setting and one of its stops, JSON-ready."""
        ...


@dataclass(frozen=True)
class NetworkChoice:
    """A setting and a stop, chosen by cross-validation (`prm.evaluation.compare.contenders.Choice`)."""

    setting: Setting
    stop: int
    margin: Tensor
    validation_nll: float
    tried: int

    def fit(self, data: HeadData) -> Network:
        return next(itertools.islice(self.setting.path(data), self.stop, None))

    def to_dict(self) -> dict[str, object]:
        return self.setting.to_dict(self.stop)


def choose_network(settings: Sequence[Setting], data: HeadData, name: str) -> NetworkChoice:
    """The setting and stop with the lowest log loss on held-out folds; the choice is scored on each fold by the others.

    Args:
        settings: all with as many stops.
        name: of the model, for the progress bar.
    """
    todo = list(itertools.product(range(len(settings)), rounds_of(data.fold)))
    fits = side_by_side(
        lambda item: _held_out(settings[item[0]], data, *item[1]),
        todo,
        f"trying {len(settings)} networks ({name})",
        "fit",
    )
    margins = torch.full((len(settings), settings[0].stops, len(data.rows)), float("nan"))
    for (i, (_, held_out)), found in zip(todo, fits, strict=True):
        margins[i, :, held_out] = found
    margins = margins.flatten(0, 1)

    def best(index: Tensor) -> int:
        held_out = take(data, index)
        return min(range(len(margins)), key=lambda i: scored(margins[i, index], held_out)[0])

    margin = held_out_margins(lambda others, part: margins[best(others)][part], margins[0], data)
    setting, stop = divmod(best((~margins[0].isnan()).nonzero()[:, 0]), settings[0].stops)
    return NetworkChoice(settings[setting], stop, margin, scored(margin, data)[0], len(margins))


def _held_out(setting: Setting, data: HeadData, train: Tensor, held_out: Tensor) -> Tensor:
    """Margins of the comparisons at `held_out` at each stop, [stops, m]."""
    check = take(data, held_out)
    return torch.stack([network.margins(check) for network in setting.path(take(data, train))])


def descend(
    parameters: Sequence[Tensor], loss: Callable[[], Tensor], stops: Sequence[int], rate: float
) -> Iterator[int]:
    """Minimise `loss` by Adam, in place; yield at each of the `stops`, numbers of steps."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=rate)
    for step in range(1, stops[-1] + 1):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in stops:
            yield step


def dropped(x: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """`x` with that share of its elements 0 and the others scaled up; drawn from a generator of the fit's own.

    `torch.nn.Dropout` draws from the one that all threads share, which makes fits depend on each other.
    """
    return x * (torch.rand(x.shape, generator=draw) >= share) / (1.0 - share) if share else x


def random_matrix(rows: int, columns: int, draw: torch.Generator, scale: float = 1.0) -> Tensor:
    """A start for a layer, [rows, columns]: normal, with variance scale^2 / columns."""
    return torch.randn(rows, columns, generator=draw) * (scale / columns**0.5)
