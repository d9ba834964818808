"""The rows of users whose responses are scored; other threads may update users meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from prm.data.arguments import Users
from prm.models.backbone_state import lock_of
from prm.models.reward_model import RewardModel
from prm.scoring.text_reader import TextReader
from prm.users.index import GENERIC_ROW, UserIndex
from prm.users.user_model import UserModel

Model = TypeVar("Model", bound=UserModel)


@contextmanager
def heads_of(reader: TextReader, index: UserIndex, users: Users) -> Iterator[tuple[RewardModel, Tensor]]:
    """Yield (a linear model, rows [b] of the users in it), which no other thread changes meanwhile."""
    model = reader.model
    assert isinstance(model, RewardModel)
    with lock_of(model.user_model):
        yield model, _rows(index, users, reader.device)


def copied_rows(reader: TextReader, index: UserIndex, users: Users) -> tuple[UserModel, Tensor]:
    """(a copy of the generic user's and these users' parameters; the users' rows [b] in it)."""
    user_model = reader.model.user_model
    with lock_of(user_model):
        return _copied(user_model, _rows(index, users, reader.device))


def _rows(index: UserIndex, users: Users, device: torch.device) -> Tensor:
    return torch.tensor([index.row(user) for user in users], dtype=torch.long, device=device)


def _copied(user_model: Model, rows: Tensor) -> tuple[Model, Tensor]:
    distinct, position = torch.unique(torch.cat([rows.new_tensor([GENERIC_ROW]), rows]), return_inverse=True)
    return user_model.subset(distinct), position[1:]
