"""One language model in memory for PPO's four roles: policy, value, reference and, if possible, reward."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from prm.config import OptimConfig
from prm.data.encoding import Batch, Encoded, pad
from prm.models.backbone_state import switched
from prm.models.packing import forward_packed
from prm.models.policy_model import Policy
from prm.models.saved_adapters import add_adapter
from prm.users.user_model import UserModel

Role = Literal["policy", "value", "reference", "reward"]
_VALUE, _REWARD = "value", "reward"


class NoUsers(UserModel):
    """The user model of a role without users: raises `ValueError` for a user id."""

    def __init__(self) -> None:
        super().__init__(1, 1, 0)

    def forward(self, rows: Tensor) -> Tensor:
        raise ValueError("the reference must not see users, but its batch contains a user id")


class Roles(nn.Module):
    """A policy's language model, with the adapters and user models of the other roles.

    | role | adapter | users | head |
    |---|---|---|---|
    | policy | the policy's | the policy's | the language model's |
    | value | its own | its own | linear, initialised to 0 |
    | reference | none | none: a user id is an error | the language model's |
    | reward | the reward model's, if any | the reward model's | the reward model's |

    Outside of `switched_to` it is the policy. Trained parameters require gradients in every role.

    Args:
        policy: with a fresh LoRA adapter.
        seed: of the value's adapter.
    """

    def __init__(self, policy: Policy, seed: int):
        super().__init__()
        backbone = cast(PeftModel, policy.backbone)
        self.policy, self._policy_adapter = policy, backbone.active_adapter
        torch.manual_seed(seed + 1)
        backbone.add_adapter(_VALUE, copy.deepcopy(backbone.peft_config[self._policy_adapter]))
        self.value_users = copy.deepcopy(policy.user_model)
        self.value_head = nn.Linear(policy.config.get_text_config().hidden_size, 1).to(policy.device)
        nn.init.zeros_(self.value_head.weight), nn.init.zeros_(self.value_head.bias)
        self.user_models: dict[Role, UserModel] = {"policy": policy.user_model, "value": self.value_users}
        self.user_models |= {"reference": NoUsers(), "reward": NoUsers()}
        self._adapters = [p for n, p in backbone.named_parameters() if ".lora_" in n]
        self._require_gradients()
        self.eval()  # dropout would add noise to the probability ratios

    @contextmanager
    def switched_to(self, role: Role) -> Iterator[None]:
        """Switch to a role's adapter and user model within the block, during which other threads wait."""
        backbone = cast(PeftModel, self.policy.backbone)
        adapter = {"policy": self._policy_adapter, "value": _VALUE, "reward": _REWARD}.get(role)
        active = adapter if adapter in backbone.peft_config else None
        with switched(backbone, user_model=self.user_models[role], adapter=active, bare=active is None):
            yield

    def add_reward(self, user_model: UserModel, adapter: Path | None) -> None:
        """Add the users and the adapter, if any, of a reward model that was trained on this language model.

        Raises `CheckpointError` if the adapter is incomplete.
        """
        self.user_models["reward"] = user_model
        if adapter is None:
            return
        backbone = cast(PeftModel, self.policy.backbone)
        inner = f"{backbone.get_base_model().base_model_prefix}."  # reward models have no language model head
        add_adapter(backbone, _REWARD, adapter, inner)
        self._require_gradients()

    def _require_gradients(self) -> None:
        """Unfreeze the adapters: PEFT freezes all but the active one."""
        for parameter in self._adapters:
            parameter.requires_grad_(True)

    def logps(self, batch: Batch) -> Tensor:
        """log pi(token | earlier tokens, user) of the response tokens, nats, float32 [b, longest response]."""
        with self.switched_to("policy"):
            return response_tokens(self.policy.token_logps(batch), batch)

    def reference_logps(self, batch: Batch) -> Tensor:
        """log pi_ref of the response tokens, nats, [b, longest response], for sequences without users."""
        with self.switched_to("reference"):
            return response_tokens(self.policy.token_logps(batch), batch)

    def values(self, batch: Batch) -> Tensor:
        """Predicted future reward before each response token, standardised, float32 [b, longest response]."""
        mask = batch.attention_mask
        with self.switched_to("value"):
            if self.policy.packs:
                out, indices = forward_packed(self.policy.base_model, batch.input_ids, mask.bool())
                states = nn.functional.embedding(indices, out.last_hidden_state[0])
            else:
                positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
                states = self.policy.base_model(
                    input_ids=batch.input_ids, attention_mask=mask.long(), position_ids=positions, use_cache=False
                ).last_hidden_state
        return self.value_head(response_tokens(states[:, :-1], batch).float()).squeeze(-1)

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Let layers be recomputed in the backward passes of the block, if `optim.gradient_checkpointing` asks for it.

        Transformers does so for layers in training mode alone; their parts, dropout among them, stay in the other one.
        """
        layers = [module for module in self.modules() if isinstance(module, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def in_order(self, sequences: Sequence[Encoded], rows: Sequence[int]) -> Tensor:
        """Order rows for efficient batches: unchanged if prefixes are shared, otherwise by decreasing length."""
        if self.policy.packs:
            return torch.tensor(rows)
        return torch.tensor(sorted(rows, key=lambda i: -len(sequences[i].ids)))

    @torch.no_grad()
    def read(
        self, sequences: Sequence[Encoded], through: Callable[[Batch], Tensor], together: Sequence[Tensor]
    ) -> Tensor:
        """Apply `through` to all sequences in the batches of rows `together`; [n, longest response]."""
        device = self.policy.device
        parts = [through(on_device([sequences[i] for i in rows.tolist()], device)) for rows in together]
        width = max(part.shape[1] for part in parts)
        padded = torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
        return padded[torch.cat(list(together)).argsort().to(device)]

    def groups(self, optim: OptimConfig) -> list[dict[str, object]]:
        """Parameter groups of the optimiser: users, adapter and head of policy and value, each clipped separately."""
        groups: list[tuple[list[nn.Parameter], float, bool]] = [
            (list(self.value_head.parameters()), optim.head_lr, False)
        ]
        for users, is_value in ((self.policy.user_model, False), (self.value_users, True)):
            named = self.policy.backbone.named_parameters()
            adapter = [p for n, p in named if ".lora_" in n and (f".{_VALUE}." in n) == is_value]
            groups += [(users.shared(), optim.user_lr, False), (users.per_row(), optim.user_lr, True)]
            groups.append((adapter, optim.lora_lr, False))
        return [
            {"params": trained, "lr": lr, "rate": lr, "rowwise": rowwise, "max_norm": optim.max_grad_norm}
            for parameters, lr, rowwise in groups
            if (trained := [p for p in parameters if p.requires_grad])
        ]

    def trained(self) -> dict[str, nn.Parameter]:
        """All trained parameters, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def detach(policy: Policy) -> Policy:
    """The policy without the adapters of the other roles."""
    backbone = cast(PeftModel, policy.backbone)
    for name in {_VALUE, _REWARD} & backbone.peft_config.keys():
        backbone.delete_adapter(name)
    return policy


def response_tokens(token_values: Tensor, batch: Batch) -> Tensor:
    """Select the response tokens from [b, l - 1, ...] (all but the first): [b, longest response, ...], 0-padded."""
    mask = batch.response_mask[:, 1:]
    lengths = mask.sum(1)
    target_mask = torch.arange(int(lengths.max()), device=mask.device) < lengths[:, None]
    out = token_values.new_zeros(*target_mask.shape, *token_values.shape[2:])
    expanded = target_mask.view(*target_mask.shape, *[1] * (token_values.dim() - 2)).expand_as(out)
    return out.masked_scatter(expanded, token_values[mask])


def on_device(sequences: Sequence[Encoded], device: torch.device) -> Batch:
    """Pad the sequences to a batch on the device."""
    return Batch(*(field.to(device) for field in pad(sequences)))
