"""Who the service knows: as the run was trained, or as the store last saved them, which wins."""

import hashlib
import queue
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from safetensors.torch import load, save

from prm.checkpoint.checkpoint import Checkpoint
from prm.data.sources.store.reader import full_id
from prm.errors import PrmError
from prm.models.backbone_state import lock_of
from prm.models.reward_model import RewardModel
from prm.users.index import GENERIC_ROW
from prm.users.user_model import UserModel
from rerank.service.store import FORGOTTEN, SavedPerson, Store, UserKey

_MAX_BYTES = 2**28  # of people's parameters held in memory
_MOST_PEOPLE = 4096

User = str | None  # `None` is the generic user


class Person(NamedTuple):
    """What is known of a user.

    Args:
        row: in `People.model.user_model`, while `People.rows` lasts.
        known: false for somebody who scores as the generic user.
        comparisons: number that the parameters were fitted to.
        version: of the store's parameters; 0 if it has none, `FORGOTTEN` if the user was forgotten since.
        outdated: the store's parameters belong to another model, so these are without what the user said.
    """

    row: int
    known: bool
    comparisons: int
    version: int
    outdated: bool = False


class People:
    """The users of a run and of a store, as rows of one small user model that holds the latest of them.

    The model's own user model is replaced by that.

    Raises `PrmError` for a run whose users have no parameters of their own.
    """

    def __init__(self, checkpoint: Checkpoint[RewardModel], store: Store, digest: str):
        self.model, self._index, self._store = checkpoint.model, checkpoint.users, store
        self._trained = checkpoint.model.user_model
        self.digest = _model_digest(self.model, digest)
        size = max(64, min(_MOST_PEOPLE, _MAX_BYTES // max(1, self._trained.max_row_bytes)))
        self._table = self._trained.subset(torch.zeros(size + 1, dtype=torch.long))
        self.model.user_model = self._table
        self._slots: OrderedDict[UserKey, Person] = OrderedDict()
        self._outdated: queue.SimpleQueue[UserKey | None] = queue.SimpleQueue()  # who was asked for and is outdated
        self._queued = set[UserKey]()
        self._free = list(range(size, 0, -1))

    @property
    def most(self) -> int:
        """How many users one request may name."""
        return self._table.n_rows - 1

    @contextmanager
    def rows(self, namespace: str, users: Sequence[User]) -> Iterator[tuple[RewardModel, list[Person]]]:
        """Yield the model and each user's row in it, as the store has them now; nobody changes them meanwhile.

        Raises `PrmError` for more users than `most`.
        """
        key_of = self._store.keys_of(namespace, {user: None for user in users if user is not None})
        asked = list(dict.fromkeys(key_of.values()))
        if len(asked) > self.most:
            raise PrmError(f"there is room for {self.most:,} users in one request, and it names {len(asked):,}")
        versions = self._store.versions(asked)
        with lock_of(self._table):
            found = self._in_slots(asked, versions)
            generic = Person(GENERIC_ROW, False, 0, 0)
            yield self.model, [generic if user is None else found[key_of[user]] for user in users]

    def one(self, user: UserKey) -> Person:
        """What is known of a user now; its row is of no use outside of `rows`."""
        with self.rows(user[0], [user[1]]) as (_, found):
            return found[0]

    def copy(self, user: UserKey) -> tuple[Person, UserModel]:
        """(what is known of the user, a user model whose row 1 is the user)."""
        with self.rows(user[0], [user[1]]) as (_, (person,)):
            return person, self._table.subset(torch.tensor([GENERIC_ROW, person.row]))

    def as_trained(self, user: UserKey) -> tuple[Person, UserModel]:
        """`copy` without what the store saved: as in the run, or as the generic user."""
        row = GENERIC_ROW if self._store.is_forgotten([user]) else self._index.row(full_id(*user))
        person = Person(row, row != GENERIC_ROW, self._trained_count(user) if row else 0, 0)
        return person, self._trained.subset(torch.tensor([GENERIC_ROW, row]))

    def to_save(self, one: UserModel, version: int, comparisons: int) -> SavedPerson:
        """What the store keeps of row 1 of a user model that `copy` returned, in place of a version."""
        return SavedPerson(self._store.next_version(version), self.digest, comparisons, save(one.row_tensors(1)))

    def next_outdated(self, wait: float) -> UserKey | None:
        """An outdated user who was asked for, if there is one within `wait` seconds."""
        try:
            user = self._outdated.get(timeout=wait)
        except queue.Empty:
            return None
        if user is not None:
            self._queued.discard(user)
        return user

    def wake(self) -> None:
        """End the wait of `next_outdated`."""
        self._outdated.put(None)

    def _in_slots(self, asked: Sequence[UserKey], versions: dict[UserKey, int]) -> dict[UserKey, Person]:
        found: dict[UserKey, Person] = {}
        stale: list[UserKey] = []
        for user in asked:
            person = self._slots.get(user)
            if person is not None and person.version == versions.get(user, 0):
                self._slots.move_to_end(user)
                found[user] = person
            else:
                stale.append(user)
        saved = self._store.saved([user for user in stale if versions.get(user, 0) > 0])
        for user in stale:
            version = versions.get(user, 0)
            found[user] = self._load(user, saved.get(user), FORGOTTEN if version else 0)
        for user, person in found.items():
            if person.outdated and user not in self._queued:  # each once, however many requests ask for them
                self._queued.add(user)
                self._outdated.put(user)
        return found

    def _load(self, user: UserKey, saved: SavedPerson | None, version: int) -> Person:
        """Put a user into a slot, unless they score as the generic user.

        Args:
            version: if nothing is saved, because it never was, or because the user was forgotten, even just now.
        """
        self._drop(user)
        version, outdated = (version, False) if saved is None else (saved.version, saved.model != self.digest)
        if saved is not None and not outdated:
            row = self._take(user)
            self._table.set_row_tensors(row, load(saved.parameters))
            person = Person(row, True, saved.comparisons, version)
        elif trained := GENERIC_ROW if version == FORGOTTEN else self._trained_row(user, saved):
            row = self._take(user)
            self._table.set_row_tensors(row, self._trained.row_tensors(trained))
            person = Person(row, True, self._trained_count(user), version, outdated)
        else:
            return Person(GENERIC_ROW, False, 0, version, outdated)
        self._slots[user] = person
        return person

    def _take(self, user: UserKey) -> int:
        if not self._free:
            self._drop(next(iter(self._slots)))  # the least recently used; a request has fewer users than slots
        return self._free.pop()

    def _drop(self, user: UserKey) -> None:
        if (person := self._slots.pop(user, None)) is not None:
            self._table.forget_row(person.row)
            self._free.append(person.row)

    def _trained_row(self, user: UserKey, saved: SavedPerson | None) -> int:
        """The user's row of the run; the generic one for somebody who was forgotten and has said more since."""
        row = self._index.row(full_id(*user))
        return GENERIC_ROW if row and saved is not None and self._store.is_forgotten([user]) else row

    def _trained_count(self, user: UserKey) -> int:
        return self._index.num_comparisons(full_id(*user)) or 0


def _model_digest(model: RewardModel, features: str) -> str:
    """Digest of what a user's parameters belong to: the features, and all of the head that users share."""
    digest = hashlib.sha256(f"{features} {type(model.user_model).__name__}".encode())
    own = {f"user_model.{name}" for name in model.user_model.own_tensors}
    for name, tensor in sorted(model.head_state().items()):
        if name not in own:
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()
