"""Hidden states of responses, collected while sampling for a linear head on the same backbone."""

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor

from prm.models.backbone_state import unconditioned
from prm.models.backbones import final_norm, weights_fingerprint
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel


def same_weights(policy: Policy, model: object) -> bool:
    """Whether a generator's hidden states can be used by a reward model's head.

    True if both have the same backbone weights without adapters, the generator has no user tokens in its prompts, and
    its dtype is at least as precise.
    """
    if not isinstance(model, RewardModel) or not model.is_linear or policy.user_tokens:
        return False
    if isinstance(policy.backbone, PeftModel) or isinstance(model.backbone, PeftModel):
        return False
    if policy.backbone.dtype not in (torch.float32, model.backbone.dtype):
        return False
    with unconditioned(policy.backbone) as backbone:
        return weights_fingerprint(backbone.base_model) == model.fingerprint


class ResponseStates:
    """Pools the features that a linear head needs of n responses; filled by `decode`.

    Meanwhile `inner` holds the outputs of the blocks of `depths`.

    Args:
        policy, model: generator and reward model for which `same_weights` is true.
        n: number of responses.
        end_ids: ids that the reward model's texts end with.
        ends: tokens that end a response.
    """

    def __init__(self, policy: Policy, model: RewardModel, n: int, end_ids: Sequence[int], ends: Sequence[int]):
        self._policy, self._layer_pooling, self._ends = policy, model.feature_spec, ends
        self._closing = list(end_ids) if any(pooling == "last" for _, pooling in model.feature_spec) else []
        self.extra = len(self._closing)  # tokens that are read after a response
        self._num_read, self._num_content = [0] * n, torch.zeros(n, device=policy.device)
        self.depths, self.inner = {depth for depth, _ in model.feature_spec}, dict[int, Tensor]()
        shape = (n, model.width)
        self._sums = {depth: torch.zeros(shape, device=policy.device) for depth in self.depths}
        self._last = {depth: torch.zeros(shape, device=policy.device) for depth in self.depths}

    def own(self, response: Sequence[int]) -> Sequence[int]:
        """Return a response without its end token."""
        return response[:-1] if response and response[-1] in self._ends else response

    def rest(self, response: list[int]) -> list[int]:
        """Tokens of a finished response that remain to be read: the last sampled one, unless it ends, and `end_ids`."""
        return [*(response[-1:] if response[-1] not in self._ends else []), *self._closing]

    def add(self, rows: Sequence[int], responses: Sequence[Sequence[int]]) -> None:
        """Add the hidden states of the token just read of each of these responses."""
        index = torch.tensor(rows, device=self._num_content.device)
        is_content = torch.tensor(
            [self._num_read[row] < len(self.own(responses[row])) for row in rows], device=index.device
        )
        self._num_content.index_add_(0, index, is_content.float())
        for depth, states in self.inner.items():
            normed = final_norm(self._policy.base_model)(states)[:, -1].float()
            self._sums[depth].index_add_(0, index, normed * is_content[:, None])
            self._last[depth][index] = normed
        for row in rows:
            self._num_read[row] += 1

    def pooled(self) -> Tensor:
        """Pooled features of each response, float32 [n, d]; NaN for an empty one."""
        parts = [
            self._last[depth] if pooling == "last" else self._sums[depth] / self._num_content[:, None]
            for depth, pooling in self._layer_pooling
        ]
        return torch.cat(parts, dim=-1)
