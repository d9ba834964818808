"""The user index: user ids and their rows in the user model."""

from collections.abc import Iterable, Mapping, Sequence

from prm.data.comparison import Comparison, id_advice
from prm.errors import PrmError, hint, shown
from prm.users.id_table import Arrays, Column, StoredIds, to_arrays
from prm.users.trained_on import TrainedOn

GENERIC_ROW = 0


class UserIndex:
    """Maps user ids to rows of the user model. Row 0 is the generic user; rows never move.

    Built from the training part alone. `grow` appends; `forget` leaves an empty row, so that all other users keep
    theirs. It also counts the comparisons that each user's row was trained on, and keeps digests of them (`trained_on`;
    `None` if unknown, as in earlier runs).

    Args:
        ids: by row, from row 1 on; `None` for forgotten users.
        num_comparisons: number of comparisons of each; `None` if not counted (earlier runs).
    """

    def __init__(self, ids: Iterable[str | None] = (), num_comparisons: Iterable[int | None] = ()):
        self._stored, self._gone = StoredIds(to_arrays([], [])), set[int]()
        self._added: list[str | None] = list(ids)  # rows after the stored ones
        self._rows = {user: row for row, user in enumerate(self._added, start=1) if user is not None}
        if len(self._rows) != sum(user is not None for user in self._added):
            raise PrmError("a user id is twice in the user index")
        counts = zip(self._added, num_comparisons)
        self._num_comparisons = {user: n for user, n in counts if user is not None and n is not None}
        self.trained_on: TrainedOn | None = TrainedOn()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Column]) -> "UserIndex":
        """The index that `to_arrays` stored; the arrays are not copied. Raises `PrmError` for other arrays."""
        index = cls()
        index._stored = StoredIds(arrays)
        return index

    @classmethod
    def from_comparisons(cls, comparisons: Iterable[Comparison]) -> "UserIndex":
        """The index of all users with comparisons, in order of first appearance."""
        index = cls()
        index.learn(comparisons)
        return index

    @property
    def ids(self) -> list[str]:
        """Known ids in row order."""
        return [user for user in self.to_json() if user is not None]

    @property
    def n_rows(self) -> int:
        """Rows of the user model, including the generic user's."""
        return len(self._stored) + len(self._added) + 1

    def __len__(self) -> int:
        """Number of known users."""
        return self._stored.known - len(self._gone) + len(self._rows)

    def __contains__(self, user: str | None) -> bool:
        return self.row(user) != GENERIC_ROW

    def row(self, user: str | None) -> int:
        """The user's row; 0 for `None` and unknown ids. Raises `PrmError` for an id that is not a string."""
        return GENERIC_ROW if user is None else self._find(user)

    def _find(self, user: str) -> int:
        if not isinstance(user, str):  # a number would silently get the generic user
            raise PrmError(f"user ids are text, got {shown(user)}{id_advice(user)}")
        if (row := self._rows.get(user)) is not None:
            return row
        row = self._stored.row(user)
        return GENERIC_ROW if row in self._gone else row

    def num_comparisons(self, user: str | None) -> int | None:
        """Comparisons, ties aside, that the user's row was trained on; `None` if unknown or not counted."""
        row = self.row(user)
        if user is not None and user in self._num_comparisons:
            return self._num_comparisons[user]
        return self._stored.num_comparisons(row) if GENERIC_ROW < row <= len(self._stored) else None

    def num_comparisons_to_json(self) -> list[int | None]:
        """Numbers of comparisons by row, from row 1 on."""
        return [self.num_comparisons(user) for user in self.to_json()]

    def learn(self, comparisons: Iterable[Comparison], anew: Iterable[str] = ()) -> None:
        """Append new users and add up everyone's comparisons; uncounted users stay so, except those in `anew`."""
        comparisons, anew = list(comparisons), list(anew)
        if self.trained_on is not None:
            for user in anew:
                self.trained_on.refit(user)
            self.trained_on.add(comparisons)
        self.grow(c.user_id for c in comparisons)
        self._num_comparisons |= dict.fromkeys(anew, 0)
        for c in comparisons:
            if not c.is_tie and (n := self.num_comparisons(c.user_id)) is not None:
                self._num_comparisons[c.user_id] = n + 1

    def record(self, comparisons: Iterable[Comparison]) -> None:
        """Keep digests of comparisons that training has used only to choose settings, or when to stop."""
        if self.trained_on is not None:
            self.trained_on.add_unused(comparisons)

    def are_learnt(self, comparisons: Sequence[Comparison]) -> list[bool]:
        """Whether the user's row was fitted to each comparison already; false where that was not recorded."""
        if self.trained_on is None:
            return [False] * len(comparisons)
        in_users = self.trained_on.in_users(comparisons).tolist()
        return [found and c.user_id in self for c, found in zip(comparisons, in_users, strict=True)]

    def grow(self, users: Iterable[str]) -> list[int]:
        """Append the new users and return their rows."""
        rows = []
        for user in dict.fromkeys(users):
            if user not in self:
                self._added.append(user)
                self._rows[user] = self.n_rows - 1
                self._num_comparisons[user] = 0
                rows.append(self._rows[user])
        return rows

    def forget(self, user: str) -> int:
        """Drop the id and return its row, which stays empty. Raises `PrmError` if unknown."""
        row = self._find(user)
        if row == GENERIC_ROW:
            raise PrmError(f"user {user!r} is not in the index{hint(user, self.ids, 'users')}")
        self._num_comparisons.pop(user, None)
        if self.trained_on is not None:
            self.trained_on.forget(user)
        if self._rows.pop(user, None) is None:
            self._gone.add(row)
        else:
            self._added[row - 1 - len(self._stored)] = None
        return row

    def to_json(self) -> list[str | None]:
        """Ids by row, from row 1 on; `None` for forgotten users."""
        stored = self._stored.ids()
        for row in self._gone:
            stored[row - 1] = None
        return stored + self._added

    def to_arrays(self) -> Arrays:
        """Ids and numbers of comparisons, for `from_arrays`."""
        return to_arrays(self.to_json(), self.num_comparisons_to_json())
