"""A key-value cache that stores each prompt once for all its responses."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

ATTENTION = "answers_to_shared_prompts"  # the name of `attend`
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # attention arguments that `attend` does not implement


def can_share(model: Any) -> bool:
    """Whether responses can share their prompt: full attention in every layer, through transformers' own interface.

    Otherwise (sliding windows, linear attention, capped scores) each response needs a copy of its prompt.
    """
    config = model.config.get_text_config()
    layers = DynamicCache(config=config).layers
    full = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return full and not capped and bool(model._supports_attention_backend)


class PromptLayer(DynamicLayer):
    """One layer's prompts [p, heads, l, d] and responses [b, heads, t, d]; `update` returns the responses' only."""

    def __init__(self, prompts: DynamicLayer, rows: int, room: int):
        super().__init__()
        assert prompts.keys is not None and prompts.values is not None  # noqa: PT018
        self.prompt_keys, self.prompt_values = prompts.keys, prompts.values
        _, heads, _, d = prompts.keys.shape
        # written in place: concatenation would copy everything for every token
        self._responses = prompts.keys.new_empty(2, rows, heads, room, d)
        self._length, self.is_initialized = 0, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self._length = self._length, self._length + key_states.shape[2]
        self._responses[0, :, :, start : self._length] = key_states
        self._responses[1, :, :, start : self._length] = value_states
        keys, values = self._responses[:, :, :, : self._length]
        return keys, values

    def get_seq_length(self) -> int:
        """Number of tokens before the next one, as if each response had its own copy of the prompt."""
        return self.prompt_keys.shape[2] + self._length

    def keep(self, rows: Tensor, prompts: Tensor | None) -> None:
        """Drop all other responses, and all other prompts unless `None`."""
        kept = self._responses.new_empty(2, len(rows), *self._responses.shape[2:])
        kept[:, :, :, : self._length] = self._responses[:, rows, :, : self._length]
        self._responses = kept
        if prompts is not None:
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]


class SharedPrompts(Cache):
    """The cache of responses to prompts that have been prefilled into another cache.

    Args:
        read: the prompts' cache, [p, ...], filled.
        mask: of the prompts, bool [p, l], False on padding.
        owners: the index of each response's prompt, int64 [b], ascending.
        room: maximum number of tokens of a response.
    """

    def __init__(self, read: DynamicCache, mask: Tensor, owners: Tensor, room: int):
        self.held = [PromptLayer(cast(DynamicLayer, layer), len(owners), room) for layer in read.layers]
        super().__init__(layers=list(self.held))
        self.mask = mask
        self._assign_slots(owners)

    def keep(self, rows: Tensor) -> None:
        """Drop all other responses, and prompts that have none left."""
        left, owners = torch.unique(self.owners[rows], return_inverse=True)
        prompts = left if len(left) < len(self.mask) else None
        for layer in self.held:
            layer.keep(rows, prompts)
        if prompts is not None:
            self.mask = self.mask[prompts]
        self._assign_slots(owners)

    def _assign_slots(self, owners: Tensor) -> None:
        """Give each response a slot of its prompt in a [p, slots] grid, of which some may stay empty."""
        counts = torch.bincount(owners, minlength=len(self.mask))
        first = counts.cumsum(0) - counts
        self.owners, self.slots = owners, int(counts.max())
        self._slot = owners * self.slots + torch.arange(len(owners), device=owners.device) - first[owners]
        self._all_filled = len(owners) == len(self.mask) * self.slots
        self.hidden = None if bool(self.mask.all()) else ~self.mask[:, None, None, :]

    def by_prompt(self, x: Tensor) -> Tensor:
        """Arrange the responses' tensor [b, heads, g, d] as [p, heads, slots * g, d]; empty slots hold zeros."""
        _, heads, g, d = x.shape
        if not self._all_filled:
            x = x.new_zeros(len(self.mask) * self.slots, heads, g, d).index_copy(0, self._slot, x)
        return x.view(-1, self.slots, heads, g, d).transpose(1, 2).reshape(-1, heads, self.slots * g, d)

    def by_answer(self, x: Tensor, g: int) -> Tensor:
        """Invert `by_prompt`."""
        p, heads, _, d = x.shape
        x = x.view(p, heads, self.slots, g, d).transpose(1, 2).reshape(-1, heads, g, d)
        return x if self._all_filled else x[self._slot]


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
    """Attention of one token per response, [b, heads, 1, d], to its prompt and to its response so far.

    All responses to a prompt are multiplied with its keys at once, so that the keys are read once.
    """
    if unsupported := [name for name in _UNSUPPORTED if kwargs.get(name) is not None]:
        raise NotImplementedError(f"attention with {unsupported[0]} cannot share prompts")
    layer = prompts.held[cast(int, module.layer_idx)]
    b, heads, d = query.shape[0], key.shape[1], query.shape[-1]
    q = query.reshape(b, heads, -1, d) * (scaling if scaling is not None else d**-0.5)
    g = q.shape[2]
    prompt_scores = prompts.by_prompt(q) @ layer.prompt_keys.mT
    if prompts.hidden is not None:
        prompt_scores = prompt_scores.masked_fill(prompts.hidden, float("-inf"))
    scores = torch.cat([prompts.by_answer(prompt_scores, g), q @ key.mT], dim=-1)
    to_prompt, to_response = (
        scores.softmax(-1, dtype=torch.float32).to(value.dtype).tensor_split([prompt_scores.shape[-1]], dim=-1)
    )
    out = prompts.by_answer(prompts.by_prompt(to_prompt) @ layer.prompt_values, g) + to_response @ value
    return out.reshape(b, 1, heads * g, -1), None


AttentionInterface.register(ATTENTION, attend)
