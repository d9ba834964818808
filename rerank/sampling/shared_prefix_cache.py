"""Keys and values of prompts held once for all their answers, whose own grow beside them."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

ATTENTION = "answers_to_shared_prompts"  # the name of `attend`
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # of attention that adds something to what is computed here


def can_share(model: Any) -> bool:
    """Whether answers can share their prompt: full attention in every layer, through transformers' own interface.

    Where not (sliding windows, linear attention, capped scores), each answer needs a copy of its prompt.
    """
    config = model.config.get_text_config()
    layers = DynamicCache(config=config).layers
    full = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return full and not capped and bool(model._supports_attention_backend)


class PromptLayer(DynamicLayer):
    """One layer's prompts [p, heads, l, d] and answers [b, heads, t, d]; `update` gives those of the answers alone."""

    def __init__(self, prompts: DynamicLayer, rows: int, room: int):
        super().__init__()
        assert prompts.keys is not None and prompts.values is not None  # noqa: PT018
        self.prompt_keys, self.prompt_values = prompts.keys, prompts.values
        _, heads, _, d = prompts.keys.shape
        # written in place: joining the old and the new would copy everything for every token
        self._own = prompts.keys.new_empty(2, rows, heads, room, d)
        self._length, self.is_initialized = 0, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self._length = self._length, self._length + key_states.shape[2]
        self._own[0, :, :, start : self._length] = key_states
        self._own[1, :, :, start : self._length] = value_states
        keys, values = self._own[:, :, :, : self._length]
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens before the next one, as if each answer had a prompt of its own."""
        return self.prompt_keys.shape[2] + self._length

    def keep(self, rows: Tensor, prompts: Tensor | None) -> None:
        """Drop all other answers, and all other prompts unless `None`."""
        kept = self._own.new_empty(2, len(rows), *self._own.shape[2:])
        kept[:, :, :, : self._length] = self._own[:, rows, :, : self._length]
        self._own = kept
        if prompts is not None:
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]


class SharedPrompts(Cache):
    """The cache of answers whose prompts have been read into another one.

    Args:
        read: the prompts' cache, [p, ...], filled.
        mask: of the prompts, bool [p, l], False on padding.
        owners: the prompt of each answer, int64 [b], ascending.
        room: most tokens of an answer.
    """

    def __init__(self, read: DynamicCache, mask: Tensor, owners: Tensor, room: int):
        self.held = [PromptLayer(cast(DynamicLayer, layer), len(owners), room) for layer in read.layers]
        super().__init__(layers=list(self.held))
        self.mask = mask
        self._seat(owners)

    def keep(self, rows: Tensor) -> None:
        """Drop all other answers, and prompts that are left without any."""
        left, owners = torch.unique(self.owners[rows], return_inverse=True)
        prompts = left if len(left) < len(self.mask) else None
        for layer in self.held:
            layer.keep(rows, prompts)
        if prompts is not None:
            self.mask = self.mask[prompts]
        self._seat(owners)

    def _seat(self, owners: Tensor) -> None:
        """Give each answer a seat at its prompt, so that all seats are [p, seats] with some of them empty."""
        counts = torch.bincount(owners, minlength=len(self.mask))
        first = counts.cumsum(0) - counts
        self.owners, self.seats = owners, int(counts.max())
        self._place = owners * self.seats + torch.arange(len(owners), device=owners.device) - first[owners]
        self._whole = len(owners) == len(self.mask) * self.seats
        self.hidden = None if bool(self.mask.all()) else ~self.mask[:, None, None, :]

    def by_prompt(self, x: Tensor) -> Tensor:
        """[p, heads, seats * g, d] of what answers have, [b, heads, g, d]; empty seats hold zeros."""
        _, heads, g, d = x.shape
        if not self._whole:
            x = x.new_zeros(len(self.mask) * self.seats, heads, g, d).index_copy(0, self._place, x)
        return x.view(-1, self.seats, heads, g, d).transpose(1, 2).reshape(-1, heads, self.seats * g, d)

    def by_answer(self, x: Tensor, g: int) -> Tensor:
        """The way back from `by_prompt`."""
        p, heads, _, d = x.shape
        x = x.view(p, heads, self.seats, g, d).transpose(1, 2).reshape(-1, heads, g, d)
        return x if self._whole else x[self._place]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    prompts: SharedPrompts,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one token per answer, [b, heads, 1, d], to its prompt and to its answer so far.

    All answers to a prompt meet its keys in one product, which reads them once.
    """
    if strange := [name for name in _UNKNOWN if kwargs.get(name) is not None]:
        raise NotImplementedError(f"attention with {strange[0]} cannot share prompts")
    layer = prompts.held[cast(int, module.layer_idx)]
    b, heads, d = query.shape[0], key.shape[1], query.shape[-1]
    q = query.reshape(b, heads, -1, d) * (scaling if scaling is not None else d**-0.5)
    g = q.shape[2]
    there = prompts.by_prompt(q) @ layer.prompt_keys.mT
    if prompts.hidden is not None:
        there = there.masked_fill(prompts.hidden, float("-inf"))
    scores = torch.cat([prompts.by_answer(there, g), q @ key.mT], dim=-1)
    to_prompt, own = scores.softmax(-1, dtype=torch.float32).to(value.dtype).tensor_split([there.shape[-1]], dim=-1)
    out = prompts.by_answer(prompts.by_prompt(to_prompt) @ layer.prompt_values, g) + own @ value
    return out.reshape(b, 1, heads * g, -1), None


AttentionInterface.register(ATTENTION, attend)
