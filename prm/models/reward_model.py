"""The personalised reward model r(x, y, u): a conditioned backbone and a head (paper, section F.2)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from prm.config import RewardModelConfig, UserConfig
from prm.data.encoding import Batch
from prm.errors import PrmError
from prm.layer_pooling import Setting
from prm.models.backbone_state import switched
from prm.models.backbones import final_norm, weights_fingerprint
from prm.models.dropout import without_dropout
from prm.models.nystroem import Rbf
from prm.models.packing import can_pack, read_together
from prm.models.user_embedding import condition, to_generic
from prm.users.models import (
    Bayes,
    Cluster,
    Individual,
    Separate,
    Uniform,
    UserModel,
    init_from_token_embeddings,
    init_near_zero,
)

_HEAD_START = 0.01  # rewards start near 0, yet users get a gradient from the first step on


@dataclass
class Rewards:
    """Rewards of a batch, float32 [b]: for the user in the sequence, and for the unknown user if asked."""

    user: Tensor | None
    generic: Tensor | None


class HeadInput(NamedTuple):
    """What linear heads see of n texts.

    Args:
        states: [n, d], standardised and, where there is a kernel, mapped.
        base: the reward [n] before any user adds to it; `None` without a base.
    """

    states: Tensor
    base: Tensor | None

    def at(self, index: Tensor) -> "HeadInput":
        """Those of the texts at `index`."""
        return HeadInput(self.states[index], None if self.base is None else self.base[index])


class RewardModel(nn.Module):
    """Scores token sequences that carry their user as ids past the vocabulary.

    With the linear head the user id is taken off the sequence and picks the head; the backbone reads the
    text once, whatever the users and the terms asked for. With the soft prompt it reads user and text.

    `standard_mean` and `standard_scale` [d] are fixed numbers: the head reads (h - mean) / scale, or what a `kernel`
    makes of it. Where a linear head reads several hidden states (`reading`), d is the width of their concatenation;
    that of one is `width`.

    Args:
        backbone: reads the texts; its input embedding is wrapped, and it drops nothing of its own from now on.
        user_model: everyone's embeddings.
        form: soft prompt or linear head, and what it reads.
        base: head of the reward model that the backbone comes from. With a linear head it stays as it is and users
            add to it: reward = base(h) + <e_u, h>; with a soft prompt it is the one head for all. It knows h as the
            backbone gives it, neither standardised nor mapped.
        landmarks: of the kernel between h and linear heads; none if 0.
    """

    standard_mean: Tensor
    standard_scale: Tensor

    def __init__(
        self,
        backbone: PreTrainedModel,
        user_model: UserModel,
        form: RewardModelConfig,
        base: nn.Linear | None = None,
        landmarks: int = 0,
    ):
        super().__init__()
        self.fingerprint = weights_fingerprint(backbone)
        without_dropout(backbone)
        self.config = backbone.config
        text_config = backbone.config.get_text_config()
        self.width, self.layers = text_config.hidden_size, text_config.num_hidden_layers
        self.reading = form.reading(self.layers)
        dim = self.width * len(self.reading)
        self.backbone, self.user_model, self.form = backbone, user_model, form
        self.vocab_size = condition(backbone, user_model)
        self.base = base.requires_grad_(False) if base is not None and form.form == "linear_head" else None
        self.score: nn.Linear | None = None
        if form.form == "soft_prompt":
            self.score = base if base is not None else nn.Linear(dim, 1, bias=False)
            if base is None:
                nn.init.normal_(self.score.weight, std=_HEAD_START)
        self.register_buffer("standard_mean", torch.zeros(dim))
        self.register_buffer("standard_scale", torch.ones(dim))
        self.kernel = Rbf(landmarks, dim) if landmarks else None

    @property
    def user_tokens(self) -> int:
        """Ids per user in a sequence."""
        return self.user_model.tokens

    @property
    def is_linear(self) -> bool:
        """True where the user is a linear head."""
        return self.score is None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        terms: Literal["user", "generic", "both"] = "user",
    ) -> Rewards:
        """Rewards [b] of sequences [b, l]; masks are bool, True on real tokens. `terms` says for whom."""
        batch = Batch(input_ids, attention_mask, response_mask)
        if self.is_linear:
            rows, text = self.take_off_users(batch)
            read = self.head_input(self.pooled(text, self._packs()))
            return Rewards(
                user=self.linear_reward(read, rows) if terms != "generic" else None,
                generic=self.linear_reward(read, torch.zeros_like(rows)) if terms != "user" else None,
            )
        generic = batch._replace(input_ids=to_generic(input_ids, self.vocab_size, self.user_tokens))
        if terms == "both":
            rewards = self.soft_reward(Batch(*(torch.cat(pair) for pair in zip(batch, generic, strict=True))))
            return Rewards(*rewards.chunk(2))
        reward = self.soft_reward(batch if terms == "user" else generic)
        return Rewards(reward, None) if terms == "user" else Rewards(None, reward)

    def take_off_users(self, batch: Batch) -> tuple[Tensor, Batch]:
        """(rows [b], the batch without its user ids): the one id past the vocabulary names the row."""
        is_user = batch.input_ids >= self.vocab_size
        rows = batch.input_ids[is_user] - self.vocab_size
        kept = (batch.input_ids.shape[0], batch.input_ids.shape[1] - 1)
        return rows, Batch(*(field[~is_user].view(kept) for field in batch))

    def pooled(self, batch: Batch, packed: bool = False) -> Tensor:
        """h of each sequence, float32 [b, d]: hidden states pooled, one behind the other; `packed`: see `pooled_at`."""
        found = self.pooled_at(batch, self.reading, packed)
        return torch.cat([found[setting] for setting in self.reading], dim=-1)

    def pooled_at(
        self, batch: Batch, settings: Sequence[Setting], packed: bool = False, people: UserModel | None = None
    ) -> dict[Setting, Tensor]:
        """Pooled hidden states, float32 [b, width] per setting, in one pass: a cut at k layers is the norm on them.

        Args:
            packed: read what sequences of the batch share once; for backbones that can.
            people: whose rows user ids mean; the model's own if not given.
        """
        places: Tensor | None = None
        depths = {layers for layers, _ in settings} - {self.layers}
        with switched(self.backbone, people=people, depths=depths) as inner:
            if packed:
                out, places = read_together(self.backbone, batch.input_ids, batch.attention_mask)
                states = {self.layers: out.last_hidden_state}
            else:
                states = {self.layers: self.read(batch)}
        states |= {layers: final_norm(self.backbone)(state) for layers, state in inner.items()}
        if places is not None:
            states = {layers: F.embedding(places, state[0]) for layers, state in states.items()}
        return {(layers, pooling): pool(states[layers], batch, pooling).float() for layers, pooling in settings}

    def _packs(self) -> bool:
        # measured on CPUs alone: elsewhere attention upon a pack is made of plain products, and padding may be cheaper
        return self.standard_mean.device.type == "cpu" and can_pack(self.backbone)

    def read(self, batch: Batch) -> Tensor:
        """Last hidden states of the backbone, [b, l, d]."""
        positions = (batch.attention_mask.long().cumsum(-1) - 1).clamp_min(0)  # padding may stand on either side
        out = self.backbone(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            position_ids=positions,
            use_cache=False,
        )
        return out.last_hidden_state

    def standardised(self, pooled: Tensor) -> Tensor:
        """(h - mean) / scale; the identity where nothing was calibrated."""
        return (pooled - self.standard_mean) / self.standard_scale

    def head_input(self, pooled: Tensor) -> HeadInput:
        """What linear heads make of pooled hidden states [n, d]: the one way from a backbone to them."""
        states = self.standardised(pooled)
        return HeadInput(states if self.kernel is None else self.kernel(states), self.base_reward(pooled))

    def base_reward(self, pooled: Tensor) -> Tensor | None:
        """The reward [n] before any user adds to it; `None` without a base."""
        return self.base(pooled).squeeze(-1) if self.base is not None else None

    def linear_reward(self, read: HeadInput, rows: Tensor) -> Tensor:
        """<e_u, h> + base [n] for n texts and rows [n]."""
        reward = (self.user_model(rows)[:, 0] * read.states).sum(-1)
        return reward if read.base is None else reward + read.base

    def linear_reward_users(self, read: HeadInput, rows: Tensor) -> Tensor:
        """<e_u, h> + base [m, n] of every row in rows [m] for every one of n texts."""
        reward = self.user_model(rows)[:, 0] @ read.states.T
        return reward if read.base is None else reward + read.base

    def linear_margin(self, first: HeadInput, second: HeadInput, rows: Tensor) -> Tensor:
        """Logit of P(first preferred) [n] for n texts each, and rows [n]."""
        return self.user_model.margins(*_differences(first, second, rows))

    def linear_logits(self, first: HeadInput, second: HeadInput, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [n] of each person's own logit; arguments as of `linear_margin`.

        Raises `PrmError` for users of whom no uncertainty is kept.
        """
        return self.posterior().logits(*_differences(first, second, rows))

    def linear_deviation(self, read: HeadInput, rows: Tensor) -> Tensor:
        """Standard deviation [n] of the rewards of n texts; raises as `linear_logits` does."""
        return self.posterior().deviations(read.states, rows)

    def with_users(self, users: UserModel) -> "RewardModel":
        """The same model for other people; linear heads only. Everything but them is shared."""
        model = copy.copy(self)
        model._modules = self._modules | {"user_model": users}
        return model

    def posterior(self) -> Bayes:
        """The user model that knows how far its people may be off. Raises `PrmError` where there is none."""
        if not isinstance(self.user_model, Bayes):
            raise PrmError("the run keeps no uncertainty: train it with users.kind 'bayes'")
        return self.user_model

    def soft_reward(self, batch: Batch) -> Tensor:
        """Linear head on the hidden state at the last real token, [b]."""
        return self.soft_reward_of(self.pooled(batch, self._packs()))

    def soft_reward_of(self, pooled: Tensor) -> Tensor:
        """The one head for all, [n], on pooled hidden states [n, d]."""
        assert self.score is not None
        return self.score(self.standardised(pooled)).squeeze(-1)

    @torch.no_grad()
    def standardise_by(self, pooled: Tensor) -> None:
        """Fix mean and scale from pooled hidden states [n, d] of training texts."""
        mean, scale = standard_of(pooled.float())
        self.standard_mean.copy_(mean)
        self.standard_scale.copy_(scale)

    def trained_parameters(self) -> dict[str, int]:
        """How many numbers training may change: N_u of the user model, N_l of all else (adapter, head, backbone)."""
        return count_trained(self, self.user_model)

    def head_state(self) -> dict[str, Tensor]:
        """Everything of this model that is neither the backbone nor its adapter: contiguous tensors by name."""
        own = {k: v for k, v in self.state_dict().items() if not k.startswith("backbone.")}
        return {k: v.detach().cpu().contiguous() for k, v in own.items()}

    def add_model_tags(self, tags: list[str]) -> None:
        """TRL names its trainer on hub models here; our card is written by `prm.checkpoint.checkpoint`."""


def _differences(first: HeadInput, second: HeadInput, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    base = None if first.base is None or second.base is None else first.base - second.base
    return first.states - second.states, rows, base


def count_trained(model: nn.Module, user_model: UserModel) -> dict[str, int]:
    """How many numbers training may change: `users`, N_u of the user model; `shared`, N_l of the rest of `model`."""
    everything = sum(p.numel() for p in model.parameters() if p.requires_grad)
    users = sum(p.numel() for p in user_model.parameters() if p.requires_grad)
    return {"users": user_model.n_parameters, "shared": everything - users}


def pool(states: Tensor, batch: Batch, pooling: str) -> Tensor:
    """[b, d] from states [b, l, d]: at the last real token, or the float32 mean over the response's own tokens."""
    if pooling == "mean":
        weights = batch.response_mask.to(torch.float32)[..., None]
        return (states.float() * weights).sum(1) / weights.sum(1)
    positions = torch.arange(states.shape[1], device=states.device)
    last = (positions * batch.attention_mask).argmax(-1)
    return states[torch.arange(len(states), device=states.device), last]


def standard_of(pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale [d] of pooled hidden states, float32 [n, d]."""
    deviation = pooled.std(0, correction=0) if len(pooled) > 1 else torch.ones_like(pooled[0])
    # a coordinate that hardly moves carries no taste; dividing by its noise would let it shout
    return pooled.mean(0), deviation.clamp_min(float(deviation.median()) * 1e-2 + 1e-8)


def build_user_model(config: UserConfig, n_rows: int, dim: int, text_dim: int = 0) -> UserModel:
    """The user model of section 4.3 that the config names, all numbers at 0; `text_dim` as of `Bayes`."""
    if config.kind == "uniform":
        return Uniform(n_rows, config.num_virtual_tokens, dim)
    if config.kind == "cluster":
        return Cluster(n_rows, config.num_virtual_tokens, dim, config.clusters, config.softmax)
    if config.kind == "bayes":
        return Bayes(n_rows, config.num_virtual_tokens, dim, min(config.rank, dim), text_dim)
    return (Individual if config.generic else Separate)(n_rows, config.num_virtual_tokens, dim)


def build_reward_model(
    backbone: PreTrainedModel,
    users: UserConfig,
    reward: RewardModelConfig,
    n_rows: int,
    seed: int,
    base: nn.Linear | None = None,
    landmarks: int = 0,
) -> RewardModel:
    """A reward model ready to be trained: user embeddings start from words, linear heads at 0 (beside `base`)."""
    dim = landmarks or backbone.config.get_text_config().hidden_size * reward.num_features
    user_model = build_user_model(users, n_rows, dim)
    if reward.form == "linear_head":
        init_near_zero(user_model, seed)
    else:
        init_from_token_embeddings(user_model, cast(Tensor, backbone.get_input_embeddings().weight), seed)
    model = RewardModel(backbone, user_model, reward, base, landmarks)
    for parameter in model.parameters():
        if parameter.numel() == 0:
            parameter.requires_grad_(False)
    return model
