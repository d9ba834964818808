"""Rows of different lengths: for each user some vectors, and memory for these alone."""

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from prm.errors import PrmError

BLOCK = 2**22  # maximum number of elements gathered at once


class RaggedRows(nn.Module):
    """For each of n rows some vectors, [count, width], stored one row's after another's.

    Vectors may be mapped from a file, which cannot grow: rows that are written later have theirs in `added`, whose
    indices follow those of `vectors`. Vectors that are replaced are overwritten with zeros at once. `state_dict` gives
    the vectors of all rows in the order of rows, and nothing else.

    Tensors: vectors [total, width]; per row `first` [n_rows], int64, index of its first vector, and `count` [n_rows],
    int32. None takes gradients.
    """

    TENSORS: ClassVar[tuple[str, ...]] = ("vectors", "first", "count")

    first: Tensor
    count: Tensor
    added: Tensor

    def __init__(self, n_rows: int, width: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(0, width), requires_grad=False)
        self.register_buffer("first", torch.zeros(n_rows, dtype=torch.long))
        self.register_buffer("count", torch.zeros(n_rows, dtype=torch.int32))
        self.register_buffer("added", torch.zeros(0, width), persistent=False)
        self._end, self._unused = 0, 0  # of `added`: the part in use, and how many vectors in it are no row's
        self._in_order = True  # `vectors`, `first` and `count` are what `state_dict` gives
        self._spare: dict[str, Tensor] = {}
        self.register_state_dict_post_hook(_put_in_order)

    def __len__(self) -> int:
        return len(self.first)

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.vectors.shape[1]

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(the vectors [t, width] of these rows, one row's after another's; the position in `rows` of each, [t])."""
        index, position = self._indices(rows)
        return self._at(index), position

    def padded(self, rows: Tensor) -> Tensor:
        """The vectors of these rows, [n, most, width], with zeros behind those of shorter ones."""
        count = self.count[rows].long()
        vectors, position = self.of(rows)
        out = vectors.new_zeros(len(rows), int(count.max()) if len(rows) else 0, self.width)
        out[position, _places(count, position)] = vectors
        return out

    def parts(self, rows: Tensor) -> Iterator[slice]:
        """Consecutive parts of `rows` whose vectors can be gathered at once."""
        elements = (self.count[rows].long().clamp_min(1) * self.width).cumsum(0)
        start = 0
        for size in torch.bincount(elements // BLOCK).tolist() if len(rows) else ():
            if size:
                yield slice(start, start + size)
            start += size

    @torch.no_grad()
    def set(self, rows: Tensor, vectors: Tensor, count: Tensor) -> None:
        """Replace the vectors of distinct rows.

        Args:
            vectors: one row's after another's, [t, width].
            count: number of each row's, [n].
        """
        old, _ = self._indices(rows)
        stored, count = len(self.vectors), count.long()
        self.vectors[old[old < stored]] = 0.0
        self.added[old[old >= stored] - stored] = 0.0
        self._unused += int((old >= stored).sum())
        self._in_order = False
        self._reserve(self._end + len(vectors))
        self.added[self._end : self._end + len(vectors)] = vectors
        self.first[rows] = stored + self._end + count.cumsum(0) - count
        self.count[rows] = count.int()
        self._end += len(vectors)
        if self._unused > self._end // 2:
            self._repack()

    @torch.no_grad()
    def grow(self, n_rows: int) -> None:
        """Add rows without vectors."""
        for name, start in (("first", len(self.vectors)), ("count", 0)):
            table = getattr(self, name)
            spare = with_spare(table, n_rows, self._spare.get(name))
            spare[len(table) : n_rows] = start
            self._spare[name] = spare
            setattr(self, name, spare[:n_rows])

    @torch.no_grad()
    def subset(self, rows: Tensor) -> Self:
        """A copy with these rows alone, in their order."""
        subset = type(self)(len(rows), self.width).to(self.vectors.device)
        subset.vectors = nn.Parameter(self.of(rows)[0], requires_grad=False)
        subset.count = self.count[rows]
        subset.first = _starts(subset.count)
        return subset

    def make_room(self, total: int) -> None:
        """Be ready to load the state of as many rows with so many vectors; what was there is gone."""
        self.vectors = nn.Parameter(self.vectors.new_zeros(total, self.width), requires_grad=False)
        self.added = torch.zeros(0, self.width, device="cpu" if self.added.is_meta else self.added.device)
        self._end, self._unused, self._in_order = 0, 0, True

    @torch.no_grad()
    def check(self, blocks: Mapping[str, Iterable[Tensor]], most: int) -> None:
        """Raise `PrmError` unless these tensors, in parts along their first axis, are a state of `state_dict`.

        Args:
            most: maximum number of vectors of a row.
        """
        end = held = 0
        for first, count in zip(blocks["first"], blocks["count"], strict=True):
            if int(count.min()) < 0 or int(count.max()) > most:
                raise PrmError(f"a row has less than 0 or more than {most} vectors")
            if not torch.equal(first, end + _starts(count)):
                raise PrmError("the vectors of a row do not follow those of the row before it")
            end += int(count.sum())
        for vectors in blocks["vectors"]:
            held += len(vectors)
            if not bool(vectors.sum().isfinite()):
                raise PrmError("it has vectors that are not finite")
        if end != held:
            raise PrmError(f"its rows have {end} vectors, and it holds {held}")

    def _indices(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(index of each vector of these rows, its position in `rows`), int64 [t] each."""
        count = self.count[rows].long()
        position = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), count)
        return self.first[rows][position] + _places(count, position), position

    def _at(self, index: Tensor) -> Tensor:
        if not self._end:
            return self.vectors[index]
        stored = len(self.vectors)
        is_added = index >= stored
        out = self.vectors.new_empty(len(index), self.width)
        out[~is_added] = self.vectors[index[~is_added]]
        out[is_added] = self.added[index[is_added] - stored]
        return out

    def _reserve(self, total: int) -> None:
        if total > len(self.added):
            longer = self.added.new_zeros(max(total, 2 * len(self.added)), self.width)
            longer[: self._end] = self.added[: self._end]
            self.added = longer

    def _repack(self) -> None:
        """Write `added` anew, without what is no row's."""
        stored = len(self.vectors)
        rows = ((self.first >= stored) & (self.count > 0)).nonzero().squeeze(1)
        self.added = self.of(rows)[0]
        self.first[rows] = stored + _starts(self.count[rows])
        self._end, self._unused = len(self.added), 0


def with_spare(table: Tensor, n_rows: int, spare: Tensor | None) -> Tensor:
    """A table that begins with `table` and has n rows or more, an eighth of its rows to spare if it is a new one.

    Args:
        spare: what an earlier call returned; used if `table` is its beginning and it is long enough.
    """
    if spare is not None and spare.data_ptr() == table.data_ptr() and len(spare) >= n_rows:
        return spare
    longer = table.new_empty(n_rows + len(table) // 8, *table.shape[1:])
    longer[: len(table)] = table
    return longer


def _starts(count: Tensor) -> Tensor:
    """Sum of the counts before each, int64."""
    return count.cumsum(0) - count


def _places(count: Tensor, position: Tensor) -> Tensor:
    """The place of each vector among its row's."""
    return torch.arange(len(position), device=position.device) - _starts(count)[position]


@torch.no_grad()
def without_zeros(dense: Tensor) -> dict[str, Tensor]:
    """The state of `RaggedRows` with the columns of tables [n_rows, width, k] that are not zero, in parts.

    The tables may be mapped from a file: no second copy of them is made.
    """
    size = max(1, BLOCK // max(1, dense[0].numel()))
    kept = torch.cat([(part != 0.0).any(1) for part in dense.split(size)])
    count = kept.sum(1, dtype=torch.int32)
    vectors, end = dense.new_empty(int(count.sum()), dense.shape[1]), 0
    for part, which in zip(dense.split(size), kept.split(size), strict=True):
        some = part.transpose(1, 2)[which]
        vectors[end : end + len(some)] = some
        end += len(some)
    return {"vectors": vectors, "first": _starts(count), "count": count}


@torch.no_grad()
def _put_in_order(rows: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """Give `state_dict` the vectors in the order of rows, if they are stored in another."""
    assert isinstance(rows, RaggedRows)
    if not rows._in_order:
        ordered = rows.subset(torch.arange(len(rows), device=rows.first.device))
        state |= {
            f"{prefix}vectors": ordered.vectors.data,
            f"{prefix}first": ordered.first,
            f"{prefix}count": ordered.count,
        }
