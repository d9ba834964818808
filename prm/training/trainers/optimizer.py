"""The optimiser of the gradient trainers: its groups of parameters, its steps, and its learning rates."""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from prm.config import OptimConfig
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel


class RowAdamW(torch.optim.AdamW):
    """AdamW that does not move rows without a gradient, and clips each group's gradient separately.

    Groups with `rowwise=True` hold tables with one user per row. Dense Adam would move users absent from a batch by
    their momentum; here a row's moments and step count change only when the row has a gradient. Each group's gradient
    is clipped to the group's `max_norm`. With FSDP2 each process steps the rows that it holds.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, betas=betas, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            grads = [p.grad for p in group["params"] if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(group["params"], group["max_norm"]) if grads else None
        tables = [(g, p) for g in self.param_groups if g["rowwise"] for p in g["params"] if p.grad is not None]
        for group, table in tables:
            self._step_rows(group, table)
            table.grad = None  # so that the dense step skips it
        super().step(closure)

    def _step_rows(self, group: dict[str, Any], table: Tensor) -> None:
        whole = self.state[table]
        if not whole:
            whole["exp_avg"], whole["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
            whole["step"] = torch.zeros_like(table.flatten(1)[:, 0])
        state = {name: _held(tensor) for name, tensor in whole.items()}
        table, grad = _held(table), _held(cast(Tensor, table.grad))
        rows = grad.flatten(1).ne(0).any(1).nonzero().squeeze(1)
        beta1, beta2 = group["betas"]
        g = grad[rows]
        state["step"][rows] += 1
        first = state["exp_avg"][rows].lerp_(g, 1 - beta1)
        second = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = first, second
        shape = (-1, *[1] * (table.dim() - 1))
        step = state["step"][rows].view(shape)
        denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        table[rows] -= group["lr"] * (first / (1 - beta1**step)) / denominator


def _held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, or rows of a sharded one. Changes in place are the tensor's."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parameter_groups(model: RewardModel | Policy, optim: OptimConfig, full: bool) -> list[dict[str, Any]]:
    """Parameter groups with their learning rates and clipping: users (shared, per row), head, backbone or adapters."""
    users = model.user_model
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    head = list(model.score.parameters()) if isinstance(model, RewardModel) and model.score is not None else []
    groups = [
        (users.shared(), optim.user_lr, False),
        (users.per_row(), optim.user_lr, True),
        (head, optim.head_lr, False),
        (backbone, optim.backbone_lr if full else optim.lora_lr, False),
    ]
    return [
        {"params": trainable, "lr": lr, "rowwise": rowwise, "max_norm": optim.max_grad_norm}
        for parameters, lr, rowwise in groups
        if (trainable := [p for p in parameters if p.requires_grad])
    ]


def rate(step: int, total: int, optim: OptimConfig) -> float:
    """Factor in [0, 1] of the learning rates at a step (counted from 0) of `total`."""
    warmup = min(1.0, (step + 1) / max(1, optim.warmup_steps))
    if optim.lr_scheduler_type == "warmup_stable_decay":
        return warmup * min(1.0, max(0, total - step) / max(1.0, total / 3))
    done = (step - optim.warmup_steps) / max(1, total - optim.warmup_steps)
    return warmup * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))
