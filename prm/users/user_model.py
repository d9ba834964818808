"""The base of all user models: from a row of the user index to the user's embedding (section 4.3)."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from prm.users.ragged_rows import with_spare

Blocks = Callable[[str], Iterator[Tensor]]  # of a saved tensor's name: its parts along the first axis

ALL_ALIKE = (
    "the log shows no difference between users: everybody has the generic user's rewards, and new comparisons of a "
    "user change nothing. More comparisons of each user may help; 'users.kind individual' learns from any"
)


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

    @property
    def all_alike(self) -> bool:
        """Whether every user has the generic user's rewards, whatever they compare, as the log showed no difference."""
        return False

    def shared(self) -> list[nn.Parameter]:
        """Parameters used by every row."""
        return [self.get_parameter(name) for name in self.SHARED]

    def per_row(self) -> list[nn.Parameter]:
        """Tables [n_rows, ...] with one user per row."""
        return [self.get_parameter(name) for name in self.PER_ROW]

    @property
    def own_tensors(self) -> tuple[str, ...]:
        """Names, in `state_dict`, of the tensors that hold numbers of single users."""
        return self.PER_ROW

    @property
    def max_row_bytes(self) -> int:
        """The most bytes that a user's own numbers can take."""
        return sum(table[0].nbytes for table in self.per_row())

    def shared_penalty(self) -> Tensor:
        """Sum of squares of the shared parameters, a scalar."""
        return sum((p.square().sum() for p in self.shared()), torch.zeros(()))

    def row_penalty(self, rows: Tensor) -> Tensor:
        """Sum of squares of each row's parameters, [n]."""
        return self.squared_distances(rows, [torch.zeros_like(table[:1]) for table in self.per_row()])

    def squared_distances(self, rows: Tensor, others: Sequence[Tensor]) -> Tensor:
        """How far each row is from other parameters, squared, [n].

        Args:
            others: for each table of `per_row()` other values of these rows, or one row for all of them.
        """
        zero = torch.zeros(len(rows), device=rows.device)
        tables = zip(self.per_row(), others, strict=True)
        return sum(((table[rows] - other).square().flatten(1).sum(1) for table, other in tables), zero)

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
    def row_tensors(self, row: int) -> dict[str, Tensor]:
        """A user's own numbers by name, as copies on the CPU: what a store keeps of one user."""
        return {name: self.get_parameter(name)[row].to("cpu", copy=True) for name in self.PER_ROW}

    @torch.no_grad()
    def set_row_tensors(self, row: int, tensors: Mapping[str, Tensor]) -> None:
        """Set a user's own numbers to what `row_tensors` gave, also of an earlier version.

        Raises `PrmError` if they are those of another model.
        """
        for name, table in zip(self.PER_ROW, self.per_row(), strict=True):
            table[row] = tensors[name].to(table)

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
        subset._parameters, subset._modules, subset._spare = dict(self._parameters), dict(self._modules), {}
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
            table = self.get_parameter(name)
            spare = with_spare(table.detach(), n_rows, self._spare.get(name))
            spare[self.n_rows : n_rows] = table[0]
            self._spare[name] = spare
            setattr(self, name, nn.Parameter(spare[:n_rows], requires_grad=table.requires_grad))
        self.n_rows = n_rows

    def adopt(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Be ready to load a saved `state_dict` of as many rows, which is returned in the form of this version.

        The model takes over the sizes that only the saved tensors tell.
        """
        return dict(saved)

    def check_saved(self, blocks: Blocks) -> None:
        """Raise `PrmError` if the values of saved tensors, in the form of this version, contradict each other."""


def untrained(*shape: int) -> nn.Parameter:
    """A parameter that is saved and moved with the model, but not trained."""
    return nn.Parameter(torch.zeros(*shape), requires_grad=False)
