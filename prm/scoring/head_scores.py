"""Scores by users' linear heads: the backbone reads each text once, for all users."""

import random
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from prm.data.arguments import Prompts, Texts, Users
from prm.data.comparison import PromptLike, parse_prompt, prompt_key
from prm.models.reward_model import HeadInput, RewardModel
from prm.scoring.text_reader import TextReader
from prm.scoring.user_rows import heads_of
from prm.users.index import UserIndex

_OTHERS = 300  # comparisons whose results a question is to predict
_PAIRS = 65536  # rows of hidden states, or differences of them, held in memory at once


class GainOverGeneric(NamedTuple):
    """Each of n responses compared with the generic user's best response, for one user.

    Args:
        pick: index of the generic user's best response.
        mean, std: of the user's logit of preferring each response to the pick, float32 [n]; 0 at the pick.
    """

    pick: int
    mean: Tensor
    std: Tensor


class NextQuestion(NamedTuple):
    """A comparison to ask a user.

    Args:
        position: in the pool.
        information: by which its result is expected to lower the log loss of other comparisons of the pool's responses,
            in nats.
    """

    position: int
    information: float


class HeadScores:
    """Rewards, margins and their uncertainty by linear heads, on the model's device.

    Columns have one entry per row, `texts` the users' texts; `TextReader.pooled` says what is refused.
    """

    def __init__(self, reader: TextReader, index: UserIndex):
        assert isinstance(reader.model, RewardModel)
        self.model, self._reader, self._index = reader.model, reader, index

    def require_posteriors(self) -> None:
        """Raise `PrmError` if the run keeps no uncertainty."""
        self.model.posterior()

    def rewards(self, prompts: Prompts, responses: Texts, users: Users, texts: Texts, empty: bool = False) -> Tensor:
        """Rewards of b rows, float32 [b]. `empty` allows empty responses."""
        features, index = self._features(prompts, responses, texts, empty)
        with self._rows(users) as (model, rows):
            return _rewards(model, features, index, rows)

    def rewards_by_user(self, prompt: PromptLike, responses: Texts, users: Users, texts: Texts) -> Tensor:
        """Rewards of n responses for m users, float32 [m, n], to the bit those of `rewards`.

        All users must have the same text before the prompt.
        """
        n = len(responses)
        features, index = self._features([prompt] * n, responses, [texts[0]] * n)
        with self._rows(users) as (model, rows):
            heads, position = _distinct_heads(model, rows)
            return model.linear_reward_users(features.at(index), heads)[position]

    def rewards_of(self, pooled: Tensor, users: Users) -> Tensor:
        """Rewards of n texts for m users, float32 [m, n], from hidden states [n, d], not standardised."""
        with self._rows(users) as (model, rows):
            heads, position = _distinct_heads(model, rows)
            return model.linear_reward_users(self.model.head_input(pooled), heads)[position]

    def rewards_with_std(self, prompts: Prompts, responses: Texts, users: Users, texts: Texts) -> tuple[Tensor, Tensor]:
        """(rewards, their posterior standard deviations), float32 [b] each; needs posteriors."""
        features, index = self._features(prompts, responses, texts)
        with self._rows(users) as (model, rows):
            return _rewards(model, features, index, rows), model.linear_deviation(features.at(index), rows)

    def margins(self, prompts: Prompts, first: Texts, second: Texts, users: Users, texts: Texts) -> Tensor:
        """Logits of P(first > second | user), float32 [b]."""
        features, index = self._features([*prompts, *prompts], [*first, *second], [*texts, *texts])
        one, other = index[: len(users)], index[len(users) :]
        with self._rows(users) as (model, rows):
            margins = [
                model.linear_margin(features.at(one[part]), features.at(other[part]), rows[part])
                for part in _parts(len(users))
            ]
        return torch.cat(margins)

    def information(self, prompts: Prompts, first: Texts, second: Texts, user: str | None, text: str) -> Tensor:
        """`NextQuestion.information` of each of n comparisons for one user, float32 [n]; needs posteriors."""
        n = len(prompts)
        features, index = self._features([*prompts, *prompts], [*first, *second], [text] * (2 * n))
        others = other_pairs(prompts, index.view(2, n))
        if others is None:  # equal responses only
            return torch.zeros(n)
        pairs = torch.cat([index.view(2, n), others], 1)
        with self._rows([user] * pairs.shape[1]) as (model, rows):
            return model.linear_information(features.at(pairs[0]), features.at(pairs[1]), rows, n)

    def gains(self, prompt: PromptLike, responses: Texts, user: str | None, text: str) -> tuple[int, Tensor, Tensor]:
        """(index of the generic user's best of n responses, posterior mean and variance [n] of the user's logit of
        preferring each response to it); needs posteriors."""
        n = len(responses)
        features, index = self._features([prompt] * n, responses, [text] * n)
        features = features.at(index)
        with self._rows([user] * n) as (model, rows):
            pick = model.linear_reward(features, model.heads(torch.zeros_like(rows))).argmax()
            return int(pick), *model.linear_logits(features, features.at(pick.expand_as(rows)), rows)

    def _features(
        self, prompts: Prompts, responses: Texts, texts: Texts, empty: bool = False
    ) -> tuple[HeadInput, Tensor]:
        """(inputs of heads for the distinct texts, index [b] of each row's)."""
        pooled, index = self._reader.pooled(prompts, responses, texts, empty)
        return self.model.head_input(pooled), index

    def _rows(self, users: Users) -> AbstractContextManager[tuple[RewardModel, Tensor]]:
        return heads_of(self._reader, self._index, users)


def other_pairs(prompts: Prompts, index: Tensor) -> Tensor | None:
    """Comparisons of any two responses to the same prompt, drawn with a fixed seed; `None` if no two differ.

    The results of these are what a question is to predict: the questions of a pool alone would be a few pairs of its
    responses, and the best question the one that repeats them (docs/LOG.md).

    Args:
        index: of the two responses of each comparison, among the distinct texts, int64 [2, n].

    Returns their indices, int64 [2, `_OTHERS`].
    """
    responses: dict[str, set[int]] = {}
    for prompt, *both in zip(prompts, *index.tolist(), strict=True):
        responses.setdefault(prompt_key(parse_prompt(prompt)), set()).update(both)
    to_prompt = [sorted(several) for several in responses.values() if len(several) > 1]
    if not to_prompt:
        return None
    draw = random.Random(0)
    pairs = [draw.sample(draw.choice(to_prompt), 2) for _ in range(_OTHERS)]
    return torch.tensor(pairs, device=index.device).T


def _rewards(model: RewardModel, features: HeadInput, index: Tensor, rows: Tensor) -> Tensor:
    """Rewards [b] of the texts at `index` for users with these rows."""
    heads, position = _distinct_heads(model, rows)
    parts = [model.linear_reward(features.at(index[part]), heads[position[part]]) for part in _parts(len(rows))]
    return torch.cat(parts)


def _distinct_heads(model: RewardModel, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(heads [k, d] of the distinct rows, index [b] of each row's): rounded alike, however often a row is repeated."""
    distinct, position = torch.unique(rows, return_inverse=True)
    return model.heads(distinct), position


def _parts(n: int) -> list[slice]:
    return [slice(start, start + _PAIRS) for start in range(0, max(1, n), _PAIRS)]
