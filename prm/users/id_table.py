"""User ids as a run folder stores them: read where they lie, so that a million of them are there at once."""

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prm.errors import PrmError

_DTYPES = {"text": np.uint8, "ends": np.int64, "keys": np.int64, "rows": np.int64, "judgements": np.int64}
_UNCOUNTED, _CHECKED = -1, 10_000

Arrays = dict[str, NDArray[Any]]


class StoredIds:
    """Ids by row from row 1 on, in arrays that may lie in a file: a look-up touches some pages of them.

    Args:
        arrays: `text` uint8, the ids in UTF-8 one behind the other; `ends` [n], where in it each id ends (that of
            somebody forgotten is empty); `keys` [known], hashes of the ids that are there, ascending; `rows` [known],
            whose they are; `judgements` [n], -1 where nobody counted.

    Raises `PrmError` where these are not such arrays; of more than 10,000 people their shapes alone are looked at, for
    nothing is read of a file whose digest stands for the rest.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]):
        for name, dtype in _DTYPES.items():
            if name not in arrays or arrays[name].dtype != dtype or arrays[name].ndim != 1:
                raise PrmError(f"the user index has no {np.dtype(dtype).name} list {name!r}")
        # a view reads one number in a fraction of the time that an array takes
        self._text, self._ends, self._keys, self._rows, self._judgements = (arrays[n].data for n in _DTYPES)
        lengths = len(self._ends) == len(self._judgements) and len(self._keys) == len(self._rows) <= len(self._ends)
        if not lengths or len(self._text) != (self._ends[-1] if len(self._ends) else 0):
            raise PrmError("the lists of the user index do not fit together")
        if len(self) <= _CHECKED:
            self._check(arrays)

    def _check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Raise `PrmError` where they are not what `to_arrays` makes of the ids that they hold."""
        try:
            ids = self.ids()
        except UnicodeDecodeError:
            raise PrmError("the user index holds an id that is no text") from None
        twice = [user for user, times in Counter(filter(None, ids)).items() if times > 1]
        if twice:
            raise PrmError(f"the user index has {twice[0]!r} twice")
        made = to_arrays(ids, [])
        if not all(np.array_equal(made[name], arrays[name]) for name in ("text", "ends", "keys", "rows")):
            raise PrmError("the user index finds people in rows that are not theirs")
        if (arrays["judgements"] < _UNCOUNTED).any():
            raise PrmError("the user index counts fewer than no comparisons")

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def known(self) -> int:
        """Of how many the id is there."""
        return len(self._keys)

    def row(self, user: str) -> int:
        """The row of an id, 0 if it is not there."""
        wanted, key = _utf8(user), _key(user)
        for i in range(bisect_left(self._keys, key), len(self._keys)):
            if self._keys[i] != key:
                break
            if self._raw(self._rows[i]) == wanted:  # two ids may have one hash
                return int(self._rows[i])
        return 0

    def ids(self) -> list[str | None]:
        """All of them; `None` where someone was forgotten."""
        return [self._raw(row).decode("utf-8", "surrogatepass") or None for row in range(1, len(self) + 1)]

    def judgements(self, row: int) -> int | None:
        """The count of a row; `None` where nobody counted."""
        n = self._judgements[row - 1]
        return None if n == _UNCOUNTED else int(n)

    def _raw(self, row: int) -> bytes:
        return bytes(self._text[self._ends[row - 2] if row > 1 else 0 : self._ends[row - 1]])


def to_arrays(ids: Sequence[str | None], judgements: Sequence[int | None]) -> Arrays:
    """What `StoredIds` reads, of ids and counts by row from row 1 on."""
    raw = [b"" if user is None else _utf8(user) for user in ids]
    known = [(row, user) for row, user in enumerate(ids, start=1) if user is not None]
    keys = np.array([_key(user) for _, user in known], np.int64)
    order = np.argsort(keys, kind="stable")
    return {
        "text": np.frombuffer(bytearray(b"".join(raw)), np.uint8),
        "ends": np.cumsum([len(r) for r in raw], dtype=np.int64),
        "keys": keys[order],
        "rows": np.array([row for row, _ in known], np.int64)[order],
        "judgements": np.array([_UNCOUNTED if n is None else n for n in judgements], np.int64),
    }


def _utf8(user: str) -> bytes:
    return user.encode("utf-8", "surrogatepass")  # whoever asks for half a character is told that it is unknown


def _key(user: str) -> int:
    return int.from_bytes(hashlib.blake2b(_utf8(user), digest_size=8).digest(), "little", signed=True)
