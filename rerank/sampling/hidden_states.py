"""Hidden states of answers, taken while they are drawn: a linear head on the same backbone has then read them."""

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import Tensor

from prm.models.backbone_state import unconditioned
from prm.models.backbones import final_norm, weights_fingerprint
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel


def same_weights(policy: Policy, model: object) -> bool:
    """Whether a generator's hidden states are those that a reward model's head reads.

    They are where both stand on the same weights without adapters, nobody stands in front of the generator's prompts,
    and the generator is no less exact.
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
    """What a linear head reads of n answers, filled by `decode`.

    While it runs, `inner` is what the blocks of `depths` put out.

    Args:
        policy, model: generator and reward model in the sense of `same_weights`.
        n: answers.
        end_ids: what the reward model's texts end with.
        ends: tokens that end an answer.
    """

    def __init__(self, policy: Policy, model: RewardModel, n: int, end_ids: Sequence[int], ends: Sequence[int]):
        self._policy, self._reading, self._ends = policy, model.reading, ends
        self._closing = list(end_ids) if any(pooling == "last" for _, pooling in model.reading) else []
        self.extra = len(self._closing)  # tokens that are read beside an answer
        self._read, self._said = [0] * n, torch.zeros(n, device=policy.device)
        self.depths, self.inner = {depth for depth, _ in model.reading}, dict[int, Tensor]()
        shape = (n, model.width)
        self._sums = {depth: torch.zeros(shape, device=policy.device) for depth in self.depths}
        self._last = {depth: torch.zeros(shape, device=policy.device) for depth in self.depths}

    def own(self, answer: Sequence[int]) -> Sequence[int]:
        """An answer without its end token."""
        return answer[:-1] if answer and answer[-1] in self._ends else answer

    def rest(self, answer: list[int]) -> list[int]:
        """What the head needs read of a finished answer, beside all tokens but the last that was drawn."""
        return [*(answer[-1:] if answer[-1] not in self._ends else []), *self._closing]

    def add(self, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> None:
        """Take in the token that was just read of each of these answers."""
        place = torch.tensor(rows, device=self._said.device)
        own = torch.tensor([self._read[row] < len(self.own(answers[row])) for row in rows], device=place.device)
        self._said.index_add_(0, place, own.float())
        for depth, states in self.inner.items():
            normed = final_norm(self._policy.base_model)(states)[:, -1].float()
            self._sums[depth].index_add_(0, place, normed * own[:, None])
            self._last[depth][place] = normed
        for row in rows:
            self._read[row] += 1

    def pooled(self) -> Tensor:
        """What the head reads of each answer, float32 [n, d]; not a number for an empty one."""
        parts = [
            self._last[depth] if pooling == "last" else self._sums[depth] / self._said[:, None]
            for depth, pooling in self._reading
        ]
        return torch.cat(parts, dim=-1)
