"""A backbone that knows users: the input embedding serves word ids and user ids alike."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prm.users.models import UserModel


class ConditionedEmbedding(nn.Module):
    """Ids below V go to the word table, the ids of row r, V + r T_u + slot, to the user model (section 4.4).

    V is the table's width, not the tokenizer's length. The user model is held by its owner, who also saves it.
    """

    def __init__(self, words: nn.Module, vocab_size: int, user_model: UserModel):
        super().__init__()
        self.words, self.num_embeddings = words, vocab_size
        self._user_model = [user_model]  # a list hides it: its parameters belong to the reward model

    @property
    def weight(self) -> Tensor:
        """The word table, which weight tying looks for here."""
        return cast(Tensor, self.words.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        is_user = input_ids >= self.num_embeddings
        embedded: Tensor = self.words(input_ids.masked_fill(is_user, 0))
        user_model = self._user_model[0]
        if user_model.tokens == 0 or not is_user.any():
            return embedded
        place = input_ids[is_user] - self.num_embeddings
        rows, inverse = torch.unique(place // user_model.tokens, return_inverse=True)
        users = user_model(rows)[inverse, place % user_model.tokens]
        return embedded.masked_scatter(is_user[..., None], users.to(embedded.dtype))


def condition(backbone: PreTrainedModel, user_model: UserModel) -> int:
    """Wrap the backbone's input embedding; returns V, where user ids begin."""
    words = backbone.get_input_embeddings()
    vocab_size = cast(int, words.num_embeddings)
    backbone.set_input_embeddings(ConditionedEmbedding(words, vocab_size, user_model))
    return vocab_size


def to_generic(input_ids: Tensor, vocab_size: int, user_tokens: int) -> Tensor:
    """The same sequences for the unknown user: every user id becomes that of row 0, same slot."""
    if user_tokens == 0:
        return input_ids
    slot = (input_ids - vocab_size) % user_tokens
    return torch.where(input_ids >= vocab_size, vocab_size + slot, input_ids)
