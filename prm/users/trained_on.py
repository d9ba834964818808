"""Which comparisons a model was trained on, as digests: enough to find them in a log, not to read them."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prm.data.comparison import Comparison, prompt_key
from prm.errors import PrmError
from prm.io.run_files import Overlap
from prm.users.id_table import Arrays, Column, key_of

_NOTHING: Mapping[str, Column] = {name: np.empty(0, np.int64) for name in ("digests", "users")}
_UNUSED = "unused"


class TrainedOn:
    """The comparisons that a model was trained on, or its settings were chosen by.

    Args:
        arrays: what `to_arrays` returns. They may be memory-mapped: they are read when they are used. Earlier versions
            stored no `unused`.

    Raises `PrmError` for other arrays.
    """

    def __init__(self, arrays: Mapping[str, Column] = _NOTHING):
        arrays = {_UNUSED: np.empty(0, np.int64), **arrays}
        for name in (*_NOTHING, _UNUSED):
            if name not in arrays or arrays[name].dtype != np.int64 or arrays[name].ndim != 1:
                raise PrmError(f"the digests of comparisons have no int64 list {name!r}")
        self._digests, self._users = arrays["digests"], arrays["users"]
        if len(self._digests) != len(self._users):
            raise PrmError("the digests of comparisons have lists of different lengths")
        self._unused: NDArray[np.int64] = arrays[_UNUSED].astype(np.int64, copy=False)
        self._added: dict[int, int] = {}  # hash of the user by digest

    def add(self, comparisons: Iterable[Comparison]) -> None:
        """Add comparisons that users are fitted to; the same one twice counts once."""
        added = dict(_keys(comparisons))
        self._added |= added
        self._unused = np.setdiff1d(self._unused, _list(added))

    def add_unused(self, comparisons: Iterable[Comparison]) -> None:
        """Add comparisons that no user is fitted to, such as those of a validation part."""
        added = dict(_keys(comparisons))
        self._unused = np.union1d(self._unused, np.setdiff1d(_list(added), self.to_arrays()["digests"]))
        self._added |= added

    def refit(self, user: str) -> None:
        """Record that the user's parameters no longer come from the comparisons so far; shared ones still do."""
        known = self.to_arrays()
        self._unused = np.union1d(self._unused, known["digests"][known["users"] == key_of(user)])

    def forget(self, user: str) -> None:
        """Remove the comparisons of a user."""
        key = key_of(user)
        kept = self._users != key
        self._digests, self._users = self._digests[kept], self._users[kept]
        self._added = {digest: other for digest, other in self._added.items() if other != key}
        self._unused = np.intersect1d(self._unused, self.to_arrays()["digests"])

    def overlap(self, comparisons: Sequence[Comparison]) -> Overlap:
        """How many of these comparisons the model was trained on."""
        ours, theirs = self.to_arrays(), _columns(_keys(comparisons), len(comparisons))
        own = np.isin(theirs[:, 0], ours["digests"])
        pair = np.isin(theirs[:, 0] ^ theirs[:, 1], ours["digests"] ^ ours["users"])
        return {"own": int(own.sum()), "others": int((pair & ~own).sum())}

    def in_users(self, comparisons: Sequence[Comparison]) -> NDArray[np.bool_]:
        """Which of n comparisons their user's parameters come from already, whatever their labels, [n]."""
        asked = _columns(_keys(comparisons), len(comparisons))[:, 0]
        start, stop = (np.searchsorted(self._digests, asked, side) for side in ("left", "right"))  # of millions
        known = (stop > start) | np.isin(asked, _list(self._added))
        return known & ~np.isin(asked, self._unused)

    def to_arrays(self) -> Arrays:
        """`digests` int64 [n], ascending; `users` int64 [n], the hash of each one's user; `unused`, some of `digests`.

        No user's parameters come from the unused ones: they are of a validation part, or from before a user was fitted
        anew.
        """
        added = _columns(self._added.items(), len(self._added))
        digests, first = np.unique(np.concatenate([self._digests, added[:, 0]]), return_index=True)
        users = np.concatenate([self._users, added[:, 1]])[first]
        return {"digests": digests, "users": users, _UNUSED: np.asarray(self._unused)}


def _keys(comparisons: Iterable[Comparison]) -> Iterable[tuple[int, int]]:
    """Yield the digest of each comparison, XOR of the hashes of its texts and of its user, and the hash of its user."""
    for c in comparisons:
        prompt, user = prompt_key(c.prompt), key_of(c.user_id)
        first, second = sorted((c.chosen, c.rejected))
        yield key_of(f"{len(prompt)} {len(first)} {prompt}{first}{second}") ^ user, user


def _list(digests: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(digests, np.int64)


def _columns(keys: Iterable[tuple[int, int]], size: int) -> NDArray[np.int64]:
    """Digests and users as columns [n, 2]."""
    return np.fromiter(keys, np.dtype((np.int64, 2)), size)
