"""Users behind a text that was read before them: their tokens attend to keys and values that were kept.

The backbone reads the text as it came, without any adapter; adapters act on the tokens of users alone. So a text's
keys and values never change, and a user costs T_u tokens.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AttentionInterface

from prm.packed import attention_of

_NAME = "prm_behind"
_adapters = threading.RLock()  # whether they act is a setting of the layers: two threads would change it for each other


class KeptBatch(NamedTuple):
    """Users, and the texts that they stand behind, padded on the right.

    Args:
        input_ids: of k users behind each text, int64 [b, k, T_u].
        attention_mask: of the texts, bool [b, l], True on real tokens.
        keys, values: of the texts, [b, l, layers, groups, d], positions in them.
    """

    input_ids: Tensor
    attention_mask: Tensor
    keys: Tensor
    values: Tensor


class _Kept(NamedTuple):
    """What the attention sees beside the users' own tokens: their block alone, and the text's real tokens."""

    keys: Tensor
    values: Tensor
    text_mask: Tensor  # [b, 1, 1, l], additive
    own_mask: Tensor  # [n, n], additive


def read_blocks(backbone: nn.Module, batch: KeptBatch) -> Any:
    """What the backbone returns for the tokens of users, as rows [b, k T_u]; each reads the text as if alone."""
    users = batch.input_ids
    k, tokens = users.shape[1:]
    lengths = batch.attention_mask.sum(1, keepdim=True)
    positions = lengths + torch.arange(tokens, device=users.device).repeat(k)
    block = torch.arange(k, device=users.device).repeat_interleave(tokens)
    own = (block[:, None] == block) & torch.ones(len(block), len(block), dtype=torch.bool, device=users.device).tril()
    kept = _Kept(batch.keys, batch.values, _additive(batch.attention_mask[:, None, None]), _additive(own))
    with _adapters, attention_of(backbone, _NAME):
        return backbone(input_ids=users.flatten(1), position_ids=positions, use_cache=False, kept=kept)


def _additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    kept: _Kept,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [b, h, n, d], key and value [b, g, n, d]; returns [b, n, h, d]."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    (b, heads, n, width), groups = query.shape, key.shape[1]
    scale = scaling if scaling is not None else width**-0.5
    asked = query.reshape(b, groups, heads // groups * n, width)  # heads that share keys ask as further tokens
    text_keys, text_values = (x[:, :, layer].transpose(1, 2).to(query.dtype) for x in (kept.keys, kept.values))
    of_text = (asked @ text_keys.mT).float() * scale + kept.text_mask
    of_own = (asked @ key.mT).float() * scale + kept.own_mask.repeat(heads // groups, 1)
    weights = torch.cat([of_text, of_own], -1).softmax(-1).to(value.dtype)
    in_text, in_own = weights.split([text_keys.shape[2], n], -1)
    out = in_text @ text_values + in_own @ value
    return out.reshape(b, heads, n, -1).transpose(1, 2), None


AttentionInterface.register(_NAME, _attention)


@contextmanager
def without_adapters(backbone: nn.Module) -> Iterator[None]:
    """The backbone as it came, as long as the block lasts, whichever adapters lie in it; what is trained stays so."""
    layers = [layer for layer in backbone.modules() if isinstance(layer, BaseTunerLayer)]
    with _adapters:
        before = [layer._disable_adapters for layer in layers]
        for layer in layers:
            layer._disable_adapters = True  # peft's own switch would also make every adapter trainable
        try:
            yield
        finally:
            for layer, off in zip(layers, before, strict=True):
                layer._disable_adapters = off
