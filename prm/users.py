"""Which row of the user model belongs to whom."""

from collections.abc import Iterable

from prm.comparison import Comparison
from prm.errors import PrmError

GENERIC_ROW = 0


class UserIndex:
    """User id to row of the user model. Row 0 is the unknown user; rows never move.

    Built from the training part alone. `grow` appends; `forget` leaves an empty row behind, so that
    everyone else keeps theirs. It also counts the comparisons that each person's row rests on.

    Args:
        ids: by row from row 1 on; `None` where someone was forgotten.
        judgements: of each of them; `None` where nobody counted (earlier runs).
    """

    def __init__(self, ids: Iterable[str | None] = (), judgements: Iterable[int | None] = ()):
        self._ids: list[str | None] = list(ids)
        self._rows = {user: row for row, user in enumerate(self._ids, start=1) if user is not None}
        if len(self._rows) != sum(user is not None for user in self._ids):
            raise PrmError("a user id stands twice in the user index")
        counted = zip(self._ids, judgements)
        self._judgements = {user: n for user, n in counted if user is not None and n is not None}

    @classmethod
    def from_comparisons(cls, comparisons: Iterable[Comparison]) -> "UserIndex":
        """The index of everyone who judged, in order of first appearance."""
        index = cls()
        index.learn(comparisons)
        return index

    @property
    def ids(self) -> list[str]:
        """Known ids in row order."""
        return [user for user in self._ids if user is not None]

    @property
    def n_rows(self) -> int:
        """Rows of the user model, the unknown user's included."""
        return len(self._ids) + 1

    def __contains__(self, user: str | None) -> bool:
        return user is not None and user in self._rows

    def row(self, user: str | None) -> int:
        """The user's row; 0 for `None` and for anyone unknown. Raises `PrmError` for an id that is no text."""
        if not isinstance(user, str | None):  # a number would be a stranger, and nobody would notice
            raise PrmError(f"user ids are text, got {user!r}; did you mean {str(user)!r}?")
        return GENERIC_ROW if user is None else self._rows.get(user, GENERIC_ROW)

    def judgements(self, user: str | None) -> int | None:
        """Comparisons, ties aside, that the user's row was learnt from; `None` for a stranger or if not counted."""
        return None if user is None else self._judgements.get(user)

    def judgements_to_json(self) -> list[int | None]:
        """Counts by row from row 1 on."""
        return [self.judgements(user) for user in self._ids]

    def learn(self, comparisons: Iterable[Comparison], anew: Iterable[str] = ()) -> None:
        """Append who is new, and count what everybody judged; who was never counted before stays so, but for `anew`."""
        comparisons = list(comparisons)
        self.grow(c.user_id for c in comparisons)
        self._judgements |= dict.fromkeys(anew, 0)
        for c in comparisons:
            if not c.is_tie and c.user_id in self._judgements:
                self._judgements[c.user_id] += 1

    def grow(self, users: Iterable[str]) -> list[int]:
        """Append those that are new and return their rows."""
        new = [user for user in dict.fromkeys(users) if user not in self._rows]
        rows = []
        for user in new:
            self._ids.append(user)
            self._rows[user] = len(self._ids)
            self._judgements[user] = 0
            rows.append(len(self._ids))
        return rows

    def forget(self, user: str) -> int:
        """Drop the id and return its row, which stays behind empty. Raises `PrmError` if unknown."""
        if user not in self._rows:
            raise PrmError(f"user {user!r} is not in the index")
        row = self._rows.pop(user)
        self._judgements.pop(user, None)
        self._ids[row - 1] = None
        return row

    def to_json(self) -> list[str | None]:
        """Ids by row from row 1 on; `None` where someone was forgotten."""
        return list(self._ids)
