"""Which comparisons a model was trained on, as digests: enough to find them in a log, not to read them."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prm.data.comparison import Comparison, prompt_key
from prm.errors import PrmError
from prm.io.run_files import Overlap
from prm.users.id_table import Arrays, Column, key_of

_NOTHING: Mapping[str, Column] = {name: np.empty(0, np.int64) for name in ("digests", "users")}


class TrainedOn:
    """The comparisons that a model was trained on, or its settings were chosen by.

    Args:
        arrays: what `to_arrays` returns. They may be memory-mapped: they are read when they are used.

    Raises `PrmError` for other arrays.
    """

    def __init__(self, arrays: Mapping[str, Column] = _NOTHING):
        for name in _NOTHING:
            if name not in arrays or arrays[name].dtype != np.int64 or arrays[name].ndim != 1:
                raise PrmError(f"the digests of comparisons have no int64 list {name!r}")
        self._digests, self._users = arrays["digests"], arrays["users"]
        if len(self._digests) != len(self._users):
            raise PrmError("the digests of comparisons have lists of different lengths")
        self._added: dict[int, int] = {}  # hash of the user by digest

    def add(self, comparisons: Iterable[Comparison]) -> None:
        """Add comparisons; the same one twice counts once."""
        self._added.update(_keys(comparisons))

    def forget(self, user: str) -> None:
        """Remove the comparisons of a user."""
        key = key_of(user)
        kept = self._users != key
        self._digests, self._users = self._digests[kept], self._users[kept]
        self._added = {digest: other for digest, other in self._added.items() if other != key}

    def overlap(self, comparisons: Sequence[Comparison]) -> Overlap:
        """How many of these comparisons the model was trained on."""
        ours, theirs = self.to_arrays(), _columns(_keys(comparisons), len(comparisons))
        own = np.isin(theirs[:, 0], ours["digests"])
        pair = np.isin(theirs[:, 0] ^ theirs[:, 1], ours["digests"] ^ ours["users"])
        return {"own": int(own.sum()), "others": int((pair & ~own).sum())}

    def seen(self, comparisons: Sequence[Comparison]) -> list[bool]:
        """Whether the model was trained on each of these comparisons."""
        digests = [digest for digest, _ in _keys(comparisons)]
        start, stop = (np.searchsorted(self._digests, digests, side) for side in ("left", "right"))
        return [bool(found) or d in self._added for found, d in zip(stop > start, digests, strict=True)]

    def to_arrays(self) -> Arrays:
        """`digests` int64 [n], ascending, and `users` int64 [n], the hash of each one's user."""
        added = _columns(self._added.items(), len(self._added))
        digests, first = np.unique(np.concatenate([self._digests, added[:, 0]]), return_index=True)
        return {"digests": digests, "users": np.concatenate([self._users, added[:, 1]])[first]}


def _keys(comparisons: Iterable[Comparison]) -> Iterable[tuple[int, int]]:
    """Yield the digest of each comparison, XOR of the hashes of its texts and of its user, and the hash of its user."""
    for c in comparisons:
        prompt, user = prompt_key(c.prompt), key_of(c.user_id)
        first, second = sorted((c.chosen, c.rejected))
        yield key_of(f"{len(prompt)} {len(first)} {prompt}{first}{second}") ^ user, user


def _columns(keys: Iterable[tuple[int, int]], size: int) -> NDArray[np.int64]:
    """Digests and users as columns [n, 2]."""
    return np.fromiter(keys, np.dtype((np.int64, 2)), size)
