"""The conditioned input embedding of a backbone: for token ids and user ids."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prm.users.user_model import UserModel


class ConditionedEmbedding(nn.Module):
    """Embeds ids below V with the token table, and ids V + r T_u + slot of row r with the user model (section 4.4).

    V is the number of rows of the table, not the tokenizer's length. The user model belongs to the reward model or
    policy, which saves it.
    """

    def __init__(self, words: nn.Module, vocab_size: int, user_model: UserModel):
        super().__init__()
        self.words, self.num_embeddings = words, vocab_size
        self._user_model = [user_model]  # a list, so that it is no submodule

    @property
    def weight(self) -> Tensor:
        """The token table, for weight tying."""
        return cast(Tensor, self.words.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        is_user = input_ids >= self.num_embeddings
        embedded: Tensor = self.words(input_ids.masked_fill(is_user, 0))
        user_model = self._user_model[0]
        if user_model.tokens == 0 or not is_user.any():
            return embedded
        user_ids = input_ids[is_user] - self.num_embeddings
        rows, inverse = torch.unique(user_ids // user_model.tokens, return_inverse=True)
        users = user_model(rows)[inverse, user_ids % user_model.tokens]
        return embedded.masked_scatter(is_user[..., None], users.to(embedded.dtype))


def condition(backbone: PreTrainedModel, user_model: UserModel) -> int:
    """Wrap the backbone's input embedding; returns V, the first user id."""
    words = backbone.get_input_embeddings()
    vocab_size = cast(int, words.num_embeddings)
    backbone.set_input_embeddings(ConditionedEmbedding(words, vocab_size, user_model))
    return vocab_size


def to_generic(input_ids: Tensor, vocab_size: int, user_tokens: int) -> Tensor:
    """The same sequences for the generic user: every user id becomes that of row 0 in the same slot."""
    if user_tokens == 0:
        return input_ids
    slot = (input_ids - vocab_size) % user_tokens
    return torch.where(input_ids >= vocab_size, vocab_size + slot, input_ids)
