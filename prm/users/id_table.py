"""User ids as a run folder stores them: memory-mapped, so that an index of a million opens at once."""

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prm.errors import PrmError

_DTYPES = {"text": np.uint8, "ends": np.int64, "keys": np.int64, "rows": np.int64, "judgements": np.int64}
_UNCOUNTED, _CHECKED = -1, 10_000

Column = NDArray[np.uint8 | np.int64]
Arrays = dict[str, Column]


class StoredIds:
    """Ids by row, from row 1 on, in arrays that may be memory-mapped: a look-up touches few of their pages.

    Args:
        arrays: `text` uint8, the concatenated ids in UTF-8; `ends` [n], where each id ends in it (a forgotten user's
            is empty); `keys` [known], hashes of the ids, ascending; `rows` [known], their rows; `judgements` [n],
            numbers of comparisons, -1 if not counted.

    Raises `PrmError` for other arrays. With more than 10,000 users only dtypes and shapes are checked, so that the
    file is not read: its digest vouches for the rest.
    """

    def __init__(self, arrays: Mapping[str, Column]):
        for name, dtype in _DTYPES.items():
            if name not in arrays or arrays[name].dtype != dtype or arrays[name].ndim != 1:
                raise PrmError(f"the user index has no {np.dtype(dtype).name} list {name!r}")
        # reading one element of a memoryview is much faster than of an array
        self._text, self._ends, self._keys, self._rows, self._num_comparisons = (arrays[n].data for n in _DTYPES)
        lengths = len(self._ends) == len(self._num_comparisons) and len(self._keys) == len(self._rows) <= len(
            self._ends
        )
        if not lengths or len(self._text) != (self._ends[-1] if len(self._ends) else 0):
            raise PrmError("the lists of the user index have inconsistent lengths")
        if len(self) <= _CHECKED:
            self._check(arrays)

    def _check(self, arrays: Mapping[str, Column]) -> None:
        """Raise `PrmError` unless the arrays are what `to_arrays` makes of their ids."""
        try:
            ids = self.ids()
        except UnicodeDecodeError:
            raise PrmError("the user index holds an id that is not valid UTF-8") from None
        duplicates = [user for user, count in Counter(filter(None, ids)).items() if count > 1]
        if duplicates:
            raise PrmError(f"the user index has {duplicates[0]!r} twice")
        expected = to_arrays(ids, [])
        if not all(np.array_equal(expected[name], arrays[name]) for name in ("text", "ends", "keys", "rows")):
            raise PrmError("the user index maps users to wrong rows")
        if (arrays["judgements"] < _UNCOUNTED).any():
            raise PrmError("the user index has negative numbers of comparisons")

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def known(self) -> int:
        """Number of rows with an id."""
        return len(self._keys)

    def row(self, user: str) -> int:
        """The row of an id, 0 if there is none."""
        encoded, key = _utf8(user), key_of(user)
        for i in range(bisect_left(self._keys, key), len(self._keys)):
            if self._keys[i] != key:
                break
            if self._raw(self._rows[i]) == encoded:  # two ids may have one hash
                return int(self._rows[i])
        return 0

    def ids(self) -> list[str | None]:
        """All ids by row; `None` for forgotten users."""
        return [self._raw(row).decode("utf-8", "surrogatepass") or None for row in range(1, len(self) + 1)]

    def num_comparisons(self, row: int) -> int | None:
        """The number of comparisons of a row; `None` if not counted."""
        n = self._num_comparisons[row - 1]
        return None if n == _UNCOUNTED else int(n)

    def _raw(self, row: int) -> bytes:
        return bytes(self._text[self._ends[row - 2] if row > 1 else 0 : self._ends[row - 1]])


def to_arrays(ids: Sequence[str | None], num_comparisons: Sequence[int | None]) -> Arrays:
    """The arrays of `StoredIds`, from ids and numbers of comparisons by row, from row 1 on."""
    encoded = [b"" if user is None else _utf8(user) for user in ids]
    known = [(row, user) for row, user in enumerate(ids, start=1) if user is not None]
    keys = np.array([key_of(user) for _, user in known], np.int64)
    order = np.argsort(keys, kind="stable")
    return {
        "text": np.frombuffer(bytearray(b"".join(encoded)), np.uint8),
        "ends": np.cumsum([len(e) for e in encoded], dtype=np.int64),
        "keys": keys[order],
        "rows": np.array([row for row, _ in known], np.int64)[order],
        "judgements": np.array([_UNCOUNTED if n is None else n for n in num_comparisons], np.int64),
    }


def key_of(text: str) -> int:
    """Hash of a user id or another text, an int64."""
    return int.from_bytes(hashlib.blake2b(_utf8(text), digest_size=8).digest(), "little", signed=True)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a lone surrogate is an unknown user, no error
