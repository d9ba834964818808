"""The rows of users whose responses are scored; other threads may update users meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from prm.data.arguments import Texts, Users
from prm.models.backbone_state import lock_of
from prm.models.reward_model import RewardModel
from prm.scoring.text_reader import TextReader
from prm.users.bayes_model import Bayes
from prm.users.index import GENERIC_ROW, UserIndex
from prm.users.user_model import UserModel

Model = TypeVar("Model", bound=UserModel)


@contextmanager
def heads_of(reader: TextReader, index: UserIndex, users: Users, texts: Texts) -> Iterator[tuple[RewardModel, Tensor]]:
    """Yield (a linear model, rows [b] in it) of users with texts [b], which no other thread changes meanwhile.

    If the run was trained on texts as priors, users with a text but without comparisons get temporary rows in a copy.
    """
    model = reader.model
    assert isinstance(model, RewardModel)
    user_model = model.user_model
    with lock_of(user_model):
        rows = _rows(index, users, reader.device)
        if not any(texts) or not isinstance(user_model, Bayes) or user_model.text_prior is None:
            yield model, rows
            return
        copied, rows = _copied(user_model, rows)
    first, row_of_text = copied.n_rows, dict[str, int]()
    by_user = rows.tolist()
    for i, (text, known) in enumerate(zip(texts, copied.known(rows).tolist(), strict=True)):
        if text and not known:
            by_user[i] = row_of_text.setdefault(text, first + len(row_of_text))
    if row_of_text:
        copied.grow(first + len(row_of_text))
        new_rows = torch.arange(first, copied.n_rows, device=reader.device)
        copied.set_text_prior(new_rows, reader.pooled_user_texts(row_of_text))
    yield model.with_users(copied), torch.tensor(by_user, dtype=torch.long, device=reader.device)


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
