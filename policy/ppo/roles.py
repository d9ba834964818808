"""One language model in memory that plays PPO's four parts: policy, value, reference and, where it can, reward."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from prm.data.encoding import Batch, Encoded, pad
from prm.models.adapters import add_adapter
from prm.models.backbone_state import switched
from prm.models.packing import read_together
from prm.models.policy_model import Policy
from prm.users.models import UserModel

Role = Literal["policy", "value", "reference", "reward"]
_VALUE, _REWARD = "value", "reward"


class NoUsers(UserModel):
    """Stands where a role sees no users: raises `ValueError` for a user id."""

    def __init__(self) -> None:
        super().__init__(1, 1, 0)

    def forward(self, rows: Tensor) -> Tensor:
        raise ValueError("the reference never sees users, and a user id stands in its batch")


class Roles(nn.Module):
    """A policy's language model, and what makes it play another part.

    | role | adapter | people | on top |
    |---|---|---|---|
    | policy | the policy's | the policy's | the language model's head |
    | value | its own | its own | a linear head that starts at 0 |
    | reference | none | none: a user id is an error | the language model's head |
    | reward | the reward model's, if any | the reward model's | the reward model's head |

    Outside of `playing` it is the policy. What is trained always asks for gradients, whoever plays.

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
        self.people: dict[Role, UserModel] = {"policy": policy.user_model, "value": self.value_users}
        self.people |= {"reference": NoUsers(), "reward": NoUsers()}
        self._adapters = [p for n, p in backbone.named_parameters() if ".lora_" in n]
        self._ask_for_gradients()
        self.eval()  # no dropout anywhere: the ratios of probabilities would be noise

    @contextmanager
    def playing(self, role: Role) -> Iterator[None]:
        """Adapter and user table of a role, together, as long as the block lasts; no other thread reads meanwhile."""
        backbone = cast(PeftModel, self.policy.backbone)
        adapter = {"policy": self._policy_adapter, "value": _VALUE, "reward": _REWARD}.get(role)
        there = adapter if adapter in backbone.peft_config else None
        with switched(backbone, people=self.people[role], adapter=there, bare=there is None):
            yield

    def take_in_reward(self, people: UserModel, adapter: Path | None) -> None:
        """People of a reward model that was trained on this language model, and its adapter, if there is one.

        Raises `CheckpointError` where the adapter is not whole.
        """
        self.people["reward"] = people
        if adapter is None:
            return
        backbone = cast(PeftModel, self.policy.backbone)
        inner = f"{backbone.get_base_model().base_model_prefix}."  # it was trained without a head
        add_adapter(backbone, _REWARD, adapter, inner)
        self._ask_for_gradients()

    def _ask_for_gradients(self) -> None:
        """Peft leaves adapters frozen that it has added to others."""
        for parameter in self._adapters:
            parameter.requires_grad_(True)

    def logps(self, batch: Batch) -> Tensor:
        """log pi(token | what stands before it, user) of the answers' tokens, nats, float32 [b, longest answer]."""
        with self.playing("policy"):
            return of_answers(self.policy.token_logps(batch), batch)

    def reference_logps(self, batch: Batch) -> Tensor:
        """log pi_ref of the answers' tokens, [b, longest answer], of sequences without users."""
        with self.playing("reference"):
            return of_answers(self.policy.token_logps(batch), batch)

    def values(self, batch: Batch) -> Tensor:
        """Reward to come before each of the answers' tokens is drawn, scaled, float32 [b, longest answer]."""
        mask = batch.attention_mask
        with self.playing("value"):
            if self.policy.packs:
                out, places = read_together(self.policy.base_model, batch.input_ids, mask.bool())
                states = nn.functional.embedding(places, out.last_hidden_state[0])
            else:
                positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
                states = self.policy.base_model(
                    input_ids=batch.input_ids, attention_mask=mask.long(), position_ids=positions, use_cache=False
                ).last_hidden_state
        return self.value_head(of_answers(states[:, :-1], batch).float()).squeeze(-1)

    def in_order(self, sequences: Sequence[Encoded], rows: Sequence[int]) -> Tensor:
        """The rows as they are best read one behind the other: those that share much, or are about as long."""
        if self.policy.packs:
            return torch.tensor(rows)
        return torch.tensor(sorted(rows, key=lambda i: -len(sequences[i].ids)))

    @torch.no_grad()
    def read(
        self, sequences: Sequence[Encoded], through: Callable[[Batch], Tensor], together: Sequence[Tensor]
    ) -> Tensor:
        """`through` of all sequences, [n, longest answer] where the policy computes; `together`: which at once."""
        device = self.policy.device
        parts = [through(on_device([sequences[i] for i in rows.tolist()], device)) for rows in together]
        width = max(part.shape[1] for part in parts)
        found = torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
        return found[torch.cat(list(together)).argsort().to(device)]

    def groups(self, optim: Any) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser: people, adapter and head of policy and value, each clipped on its own."""
        found: list[tuple[list[nn.Parameter], float, bool]] = [
            (list(self.value_head.parameters()), optim.head_lr, False)
        ]
        for users, is_value in ((self.policy.user_model, False), (self.value_users, True)):
            named = self.policy.backbone.named_parameters()
            adapter = [p for n, p in named if ".lora_" in n and (f".{_VALUE}." in n) == is_value]
            found += [(users.shared(), optim.user_lr, False), (users.per_row(), optim.user_lr, True)]
            found.append((adapter, optim.lora_lr, False))
        return [
            {"params": trained, "lr": lr, "rate": lr, "rowwise": rowwise, "max_norm": optim.max_grad_norm}
            for parameters, lr, rowwise in found
            if (trained := [p for p in parameters if p.requires_grad])
        ]

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything that training moves, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def leave_policy(self) -> Policy:
        """The policy alone: the adapters of other roles are gone from its language model."""
        backbone = cast(PeftModel, self.policy.backbone)
        for name in {_VALUE, _REWARD} & backbone.peft_config.keys():
            backbone.delete_adapter(name)
        return self.policy


def of_answers(found: Tensor, batch: Batch) -> Tensor:
    """Of all tokens but the first, [b, l - 1, ...], those of the answers: [b, longest answer, ...], 0 behind them."""
    mask = batch.response_mask[:, 1:]
    lengths = mask.sum(1)
    places = torch.arange(int(lengths.max()), device=mask.device) < lengths[:, None]
    out = found.new_zeros(*places.shape, *found.shape[2:])
    wide = places.view(*places.shape, *[1] * (found.dim() - 2)).expand_as(out)
    return out.masked_scatter(wide, found[mask])


def on_device(sequences: Sequence[Encoded], device: torch.device) -> Batch:
    """The sequences as a padded batch there."""
    return Batch(*(field.to(device) for field in pad(sequences)))
