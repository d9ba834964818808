"""The personalised reward model r(x, y, u): a conditioned backbone and a head (paper, section F.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from prm.config import LayerPooling, RewardModelConfig, UserConfig
from prm.data.encoding import Batch
from prm.errors import PrmError
from prm.io.run_files import Parameters
from prm.models.backbone_state import plain, switched
from prm.models.backbones import final_norm, is_bidirectional, weights_fingerprint
from prm.models.dropout import without_dropout
from prm.models.length_limits import first_position
from prm.models.nystroem import Rbf
from prm.models.packing import can_pack, forward_packed
from prm.models.user_token_embedding import condition, to_generic
from prm.users.bayes_model import Bayes
from prm.users.build import build_user_model, init_from_token_embeddings, init_near_zero
from prm.users.user_model import UserModel

_INIT_STD = 0.01  # rewards start near 0, but users get a gradient from the first step
_PRODUCTS = 2**20  # held at once by `linear_reward_users`; they stay in the cache


@dataclass
class Rewards:
    """Rewards of a batch, float32 [b]: for the user in the sequence, and for the generic user."""

    user: Tensor | None
    generic: Tensor | None


class HeadInput(NamedTuple):
    """The inputs of linear heads for n texts.

    Args:
        states: [n, d], standardised and, with a kernel, mapped.
        base: the rewards [n] of the base head; `None` without one.
    """

    states: Tensor
    base: Tensor | None

    def at(self, index: Tensor) -> "HeadInput":
        """The inputs for the texts at `index`."""
        return HeadInput(self.states[index], None if self.base is None else self.base[index])


class RewardModel(nn.Module):
    """Scores token sequences that contain user ids past the vocabulary.

    With a linear head, the user id is removed from the sequence and selects the head; the backbone processes each
    text once, for any users and terms. With a soft prompt, it processes the user's embeddings and the text.

    `standard_mean` and `standard_scale` [d] are fixed: the head's input is (h - mean) / scale, mapped by the `kernel`
    if there is one. With several features (`feature_spec`) h is their concatenation, and d its width; `width` is that
    of one hidden state.

    `bidirectional` says that the hidden states of a text depend on later tokens, too, as an encoder's do: such texts
    share nothing.

    Args:
        backbone: its input embedding is wrapped and its dropout switched off.
        user_model: embeds users.
        form: soft prompt or linear head, and its features.
        base: head of the reward model that the backbone comes from, applied to h as it is, neither standardised nor
            mapped. With a linear head it is frozen, and users add to it: reward = base(h) + <e_u, h>; with a soft
            prompt it is the one head for all users.
        landmarks: number of landmarks of the kernel; 0 for none.
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
        self.bidirectional, self._first_position = is_bidirectional(backbone), first_position(backbone)
        without_dropout(backbone)
        self.config = backbone.config
        text_config = backbone.config.get_text_config()
        self.width, self.layers = text_config.hidden_size, text_config.num_hidden_layers
        self.feature_spec = form.feature_spec(self.layers)
        dim = self.width * len(self.feature_spec)
        self.backbone, self.user_model, self.form = backbone, user_model, form
        self.vocab_size = condition(backbone, user_model)
        self.base = base.requires_grad_(False) if base is not None and form.form == "linear_head" else None
        self.score: nn.Linear | None = None
        if form.form == "soft_prompt":
            self.score = base if base is not None else nn.Linear(dim, 1, bias=False)
            if base is None:
                nn.init.normal_(self.score.weight, std=_INIT_STD)
        self.register_buffer("standard_mean", torch.zeros(dim))
        self.register_buffer("standard_scale", torch.ones(dim))
        self.kernel = Rbf(landmarks, dim) if landmarks else None

    @property
    def user_tokens(self) -> int:
        """Ids per user in a sequence."""
        return self.user_model.tokens

    @property
    def _no_split_modules(self) -> object:
        """The layers that FSDP shards one by one: the backbone's."""
        return plain(self.backbone)._no_split_modules

    @property
    def is_linear(self) -> bool:
        """True if the user's embedding is a linear head."""
        return self.score is None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        response_mask: Tensor,
        terms: Literal["user", "generic", "both"] = "user",
    ) -> Rewards:
        """Rewards [b] of sequences [b, l], for the users of `terms`; masks are bool, True on real tokens."""
        batch = Batch(input_ids, attention_mask, response_mask)
        if self.is_linear:
            rows, text = self.take_off_users(batch)
            features = self.head_input(self.pooled(text, can_pack(self.backbone)))
            return Rewards(
                user=self.linear_reward(features, self.heads(rows)) if terms != "generic" else None,
                generic=self.linear_reward(features, self.heads(torch.zeros_like(rows))) if terms != "user" else None,
            )
        generic = batch._replace(input_ids=to_generic(input_ids, self.vocab_size, self.user_tokens))
        if terms == "both":
            rewards = self.soft_reward(Batch(*(torch.cat(pair) for pair in zip(batch, generic, strict=True))))
            return Rewards(*rewards.chunk(2))
        reward = self.soft_reward(batch if terms == "user" else generic)
        return Rewards(reward, None) if terms == "user" else Rewards(None, reward)

    def take_off_users(self, batch: Batch) -> tuple[Tensor, Batch]:
        """(rows [b], the batch without its user ids), of sequences with one user id each."""
        is_user = batch.input_ids >= self.vocab_size
        rows = batch.input_ids[is_user] - self.vocab_size
        shape = (batch.input_ids.shape[0], batch.input_ids.shape[1] - 1)
        return rows, Batch(*(field[~is_user].view(shape) for field in batch))

    def pooled(self, batch: Batch, packed: bool = False) -> Tensor:
        """h of each sequence, float32 [b, d]: pooled hidden states, concatenated; `packed` as of `pooled_at`."""
        states = self.pooled_at(batch, self.feature_spec, packed)
        return torch.cat([states[setting] for setting in self.feature_spec], dim=-1)

    def pooled_at(
        self, batch: Batch, settings: Sequence[LayerPooling], packed: bool = False
    ) -> dict[LayerPooling, Tensor]:
        """Pooled hidden states, float32 [b, width] per setting, in one pass; the final norm is applied to each layer.

        Args:
            packed: process shared prefixes of the batch once; only if `can_pack`.
        """
        index: Tensor | None = None
        depths = {layers for layers, _ in settings} - {self.layers}
        with switched(self.backbone, depths=depths) as captured:
            if packed:
                out, index = forward_packed(self.backbone, batch.input_ids, batch.attention_mask)
                states = {self.layers: out.last_hidden_state}
            else:
                states = {self.layers: self.read(batch)}
        states |= {layers: final_norm(self.backbone)(state) for layers, state in captured.items()}
        if index is not None:
            states = {layers: F.embedding(index, state[0]) for layers, state in states.items()}
        return {(layers, pooling): pool(states[layers], batch, pooling).float() for layers, pooling in settings}

    def read(self, batch: Batch) -> Tensor:
        """Last hidden states of the backbone, [b, l, d]."""
        positions = (batch.attention_mask.long().cumsum(-1) - 1).clamp_min(0)  # padding may be on either side
        out = self.backbone(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask.long(),
            position_ids=positions + self._first_position,
            **({} if self.bidirectional else {"use_cache": False}),
        )
        return out.last_hidden_state

    def standardised(self, pooled: Tensor) -> Tensor:
        """(h - mean) / scale; the identity before `standardise_by`."""
        return (pooled - self.standard_mean) / self.standard_scale

    def head_input(self, pooled: Tensor) -> HeadInput:
        """The inputs of linear heads, from pooled hidden states [n, d]."""
        states = self.standardised(pooled)
        return HeadInput(states if self.kernel is None else self.kernel(states), self.base_reward(pooled))

    def base_reward(self, pooled: Tensor) -> Tensor | None:
        """The rewards [n] of the base head; `None` without one."""
        return self.base(pooled).squeeze(-1) if self.base is not None else None

    def heads(self, rows: Tensor) -> Tensor:
        """The users' linear heads e_u, [n, d]."""
        return self.user_model(rows)[:, 0]

    def linear_reward(self, features: HeadInput, heads: Tensor) -> Tensor:
        """<e_u, h> + base, [n], for n texts and the heads of their users, [n, d]."""
        reward = (heads * features.states).sum(-1)
        return reward if features.base is None else reward + features.base

    def linear_reward_users(self, features: HeadInput, heads: Tensor) -> Tensor:
        """<e_u, h> + base, [m, n], of each of m heads for each of n texts; to the bit that of `linear_reward`."""
        size = max(1, _PRODUCTS // max(1, features.states.numel()))  # a matrix product would round otherwise
        reward = torch.cat([(part[:, None] * features.states).sum(-1) for part in heads.split(size)])
        return reward if features.base is None else reward + features.base

    def linear_margin(self, first: HeadInput, second: HeadInput, rows: Tensor) -> Tensor:
        """Logit of P(first preferred) [n] for n pairs of texts and rows [n]."""
        return self.user_model.margins(*_differences(first, second, rows))

    def linear_logits(self, first: HeadInput, second: HeadInput, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance [n] of each user's logit; arguments as of `linear_margin`.

        Raises `PrmError` for a user model without posteriors.
        """
        return self.posterior().logits(*_differences(first, second, rows))

    def linear_information(self, first: HeadInput, second: HeadInput, rows: Tensor, n: int) -> Tensor:
        """Information of each of the first n pairs about the others, nats, [n], for one user; raises likewise."""
        differences, rows, base = _differences(first, second, rows)
        return self.posterior().information(differences, rows, n, base)

    def linear_deviation(self, features: HeadInput, rows: Tensor) -> Tensor:
        """Posterior standard deviation [n] of the rewards of n texts; raises as `linear_logits` does."""
        return self.posterior().deviations(features.states, rows)

    def posterior(self) -> Bayes:
        """The user model, if it has posteriors. Raises `PrmError` otherwise."""
        if not isinstance(self.user_model, Bayes):
            raise PrmError("the run keeps no uncertainty: train it with users.kind 'bayes'")
        return self.user_model

    def soft_reward(self, batch: Batch) -> Tensor:
        """Linear head on the hidden state at the last real token, [b]."""
        return self.soft_reward_of(self.pooled(batch, can_pack(self.backbone)))

    def soft_reward_of(self, pooled: Tensor) -> Tensor:
        """Rewards [n] of the head of soft prompts, on pooled hidden states [n, d]."""
        assert self.score is not None
        return self.score(self.standardised(pooled)).squeeze(-1)

    @torch.no_grad()
    def standardise_by(self, pooled: Tensor) -> None:
        """Set mean and scale from pooled hidden states [n, d] of training texts."""
        mean, scale = standard_of(pooled.float())
        self.standard_mean.copy_(mean)
        self.standard_scale.copy_(scale)

    def trained_parameters(self) -> Parameters:
        """Numbers of trainable parameters: N_u of the user model, N_l of the rest (adapter, head, backbone)."""
        return count_trained(self, self.user_model)

    def head_state(self) -> dict[str, Tensor]:
        """The tensors outside of the backbone and its adapter, contiguous, by name."""
        state = {k: v for k, v in self.state_dict().items() if not k.startswith("backbone.")}
        return {k: v.detach().cpu().contiguous() for k, v in state.items()}

    def add_model_tags(self, tags: list[str]) -> None:
        """Do nothing: TRL calls this, but `prm.checkpoint.checkpoint` writes the model card."""


def _differences(first: HeadInput, second: HeadInput, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    base = None if first.base is None or second.base is None else first.base - second.base
    return first.states - second.states, rows, base


def count_trained(model: nn.Module, user_model: UserModel) -> Parameters:
    """Numbers of trainable parameters: `users`, N_u of the user model; `shared`, N_l of the rest of `model`."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    users = sum(p.numel() for p in user_model.parameters() if p.requires_grad)
    return {"users": user_model.n_parameters, "shared": trainable - users}


def pool(states: Tensor, batch: Batch, pooling: str) -> Tensor:
    """[b, d] from states [b, l, d]: the state of the last real token, or the float32 mean over the response."""
    if pooling == "mean":
        weights = batch.response_mask.to(torch.float32)[..., None]
        return (states.float() * weights).sum(1) / weights.sum(1)
    positions = torch.arange(states.shape[1], device=states.device)
    last = (positions * batch.attention_mask).argmax(-1)
    return states[torch.arange(len(states), device=states.device), last]


def standard_of(pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale [d] of pooled hidden states, float32 [n, d]."""
    deviation = pooled.std(0, correction=0) if len(pooled) > 1 else torch.ones_like(pooled[0])
    # a floor: a coordinate that hardly varies would have its noise amplified
    return pooled.mean(0), deviation.clamp_min(float(deviation.median()) * 1e-2 + 1e-8)


def build_reward_model(
    backbone: PreTrainedModel,
    users: UserConfig,
    reward: RewardModelConfig,
    n_rows: int,
    seed: int,
    base: nn.Linear | None = None,
    landmarks: int = 0,
) -> RewardModel:
    """Build an untrained reward model: user embeddings start as token embeddings, linear heads at 0 (beside `base`)."""
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
