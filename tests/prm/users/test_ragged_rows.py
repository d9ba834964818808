"""Rows of different lengths: worked by hand, against lists, and nothing of a row that was overwritten."""

import copy
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from prm.errors import PrmError
from prm.users import ragged_rows
from prm.users.ragged_rows import RaggedRows, without_zeros

WIDTH = 3


def lists(rows: RaggedRows) -> list[list[list[float]]]:
    """The vectors of each row."""
    every = torch.arange(len(rows))
    vectors, position = rows.of(every)
    return [vectors[position == row].tolist() for row in every]


def held(rows: RaggedRows) -> list[float]:
    """All numbers in memory, also of no row."""
    return torch.cat([rows.vectors.flatten(), rows.added.flatten()]).tolist()


def by_hand() -> RaggedRows:
    """Row 1 has two vectors, row 3 one, rows 0 and 2 none."""
    rows = RaggedRows(4, WIDTH)
    rows.set(torch.tensor([3, 1]), torch.arange(1.0, 10.0).view(3, 3), torch.tensor([1, 2]))
    return rows


def loaded(rows: RaggedRows) -> RaggedRows:
    """The rows as they are read from what is saved."""
    again = RaggedRows(len(rows), WIDTH)
    state = {name: tensor.clone() for name, tensor in rows.state_dict().items()}
    again.make_room(len(state["vectors"]))
    again.load_state_dict(state, assign=True)
    return again


def test_rows_by_hand() -> None:
    rows = by_hand()
    assert lists(rows) == [[], [[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], [], [[1.0, 2.0, 3.0]]]
    vectors, position = rows.of(torch.tensor([3, 0, 1, 3]))
    assert vectors[:, 0].tolist() == [1.0, 4.0, 7.0, 1.0]
    assert position.tolist() == [0, 2, 2, 3]
    assert rows.padded(torch.tensor([1, 2, 3]))[:, :, 0].tolist() == [[4.0, 7.0], [0.0, 0.0], [1.0, 0.0]]
    assert rows.padded(torch.tensor([], dtype=torch.long)).shape == (0, 0, WIDTH)
    state = rows.state_dict()
    assert state["vectors"][:, 0].tolist() == [4.0, 7.0, 1.0]  # in the order of rows
    assert state["first"].tolist() == [0, 0, 2, 2]
    assert state["count"].tolist() == [0, 2, 0, 1]
    assert sorted(state) == sorted(RaggedRows.TENSORS)


def test_columns_of_zeros_are_dropped_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they stand, and however many rows are looked at at once."""
    dense = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 5.0]]])
    for block in (1, ragged_rows.BLOCK):
        monkeypatch.setattr(ragged_rows, "BLOCK", block)
        state = without_zeros(dense)
        assert state["vectors"].tolist() == [[1.0, 2.0], [0.0, 5.0]]
        assert (state["first"].tolist(), state["count"].tolist()) == ([0, 0, 1], [0, 1, 1])


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_of_plain_lists_whatever_was_done(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, overwritten, emptied, added, copied, saved and loaded in any order; never more than half is unused."""
    monkeypatch.setattr(ragged_rows, "BLOCK", 8)
    draw = torch.Generator().manual_seed(seed)
    rows, expected = RaggedRows(6, WIDTH), [list[list[float]]() for _ in range(6)]

    def some(most: int) -> int:
        return int(torch.randint(most, (1,), generator=draw))

    for _ in range(60):
        match some(6):
            case 0:
                n = len(expected) + 1 + some(3)
                rows.grow(n)
                expected += [[] for _ in range(n - len(expected))]
            case 1:
                rows = loaded(rows)
            case 2:
                which = torch.randperm(len(expected), generator=draw)[: 4 + some(3)]
                rows, expected = rows.subset(which), [expected[i] for i in which]
            case _:
                which = torch.randperm(len(expected), generator=draw)[: 1 + some(3)]
                count = torch.randint(4, (len(which),), generator=draw)
                vectors = torch.randn(int(count.sum()), WIDTH, generator=draw)
                rows.set(which, vectors, count)
                for row, part in zip(which.tolist(), vectors.split(count.tolist()), strict=True):
                    expected[row] = part.tolist()
        assert lists(rows) == expected
        live = sum(len(one) for one in expected)
        assert rows._end <= 2 * live
        assert sum(x != 0.0 for x in held(rows)) == live * WIDTH  # nothing of what was overwritten
        every = torch.arange(len(rows))
        assert torch.cat([every[part] for part in rows.parts(every)]).tolist() == every.tolist()
    assert lists(copy.deepcopy(rows)) == expected


def test_parts_hold_what_a_block_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 2, 1, 0, 2 vectors of 3 numbers, up to 6 numbers a part beside the row that passes it."""
    rows = RaggedRows(4, WIDTH)
    rows.set(torch.tensor([0, 1, 3]), torch.ones(5, WIDTH), torch.tensor([2, 1, 2]))
    monkeypatch.setattr(ragged_rows, "BLOCK", 6)
    sizes = [len(rows.of(torch.arange(4)[part])[0]) for part in rows.parts(torch.arange(4))]
    assert sum(sizes) == 5
    assert max(sizes) * WIDTH <= 6 + 2 * WIDTH
    assert len(sizes) > 1


def test_what_a_row_had_is_gone_at_once_and_others_stay() -> None:
    for rows in (by_hand(), loaded(by_hand())):
        rows.set(torch.tensor([1]), torch.zeros(0, WIDTH), torch.tensor([0]))
        assert lists(rows) == [[], [], [], [[1.0, 2.0, 3.0]]]
        assert not {4.0, 5.0, 6.0, 7.0, 8.0, 9.0} & set(held(rows))
        assert rows.state_dict()["vectors"].tolist() == [[1.0, 2.0, 3.0]]


def test_what_is_loaded_is_not_copied_by_reading_or_writing_a_row() -> None:
    """A map of a file cannot grow; a row that is written later lies elsewhere."""
    rows = loaded(by_hand())
    place = rows.vectors.data_ptr()
    assert rows.state_dict()["vectors"].data_ptr() == place
    rows.set(torch.tensor([2]), torch.full((2, WIDTH), 8.0), torch.tensor([2]))
    rows.grow(5)
    assert rows.vectors.data_ptr() == place
    assert len(rows.vectors) == 3
    assert lists(rows)[1:3] == [[[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], [[8.0] * 3] * 2]
    assert lists(loaded(rows)) == lists(rows)


def blocks(state: dict[str, Tensor]) -> dict[str, Iterable[Tensor]]:
    return {name: tensor.split(2) for name, tensor in state.items()}


DAMAGE: dict[str, tuple[dict[str, Tensor], str]] = {
    "less than none": ({"count": torch.tensor([0, -2, 0, 1], dtype=torch.int32)}, "less than 0"),
    "more than there may be": ({"count": torch.tensor([0, 5, 0, 1], dtype=torch.int32)}, "more than 4"),
    "of somebody else": ({"first": torch.tensor([0, 0, 0, 2])}, "follow"),
    "far beyond": ({"first": torch.tensor([0, 0, 2, 2**60])}, "follow"),
    "before the first": ({"first": torch.tensor([-1, -1, 1, 1])}, "follow"),
    "of nobody": ({"count": torch.tensor([0, 2, 0, 0], dtype=torch.int32)}, "2 vectors, and it holds 3"),
    "missing": ({"vectors": torch.ones(2, WIDTH)}, "3 vectors, and it holds 2"),
    "no number": ({"vectors": torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, float("nan"), 3.0]])}, "finite"),
    "infinite": ({"vectors": torch.full((3, WIDTH), float("inf"))}, "finite"),
}


@pytest.mark.parametrize(("change", "fault"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_refused(change: dict[str, Tensor], fault: str) -> None:
    rows = by_hand()
    good = dict(rows.state_dict())
    rows.check(blocks(good), 4)
    with pytest.raises(PrmError, match=fault):
        rows.check(blocks(good | change), 4)
