"""The maximum sequence length of a backbone, and the one up to which it treats short sequences the same."""

import re
from typing import Any

from torch import nn

ENDLESS = 1 << 30  # for backbones without a limit
_POSITION_TABLE = re.compile(
    r"(.*\.)?(wpe|embed_positions|positions_embed|pos_encoding|position_embeddings)"
)  # learned or fixed tables of positions


def reach(backbone: nn.Module) -> int:
    """Maximum sequence length at which hidden states do not depend on the other sequences of a batch.

    A table of positions has an end. Rotary frequencies of the types `dynamic` and `longrope` change for a whole batch
    as soon as one of its sequences exceeds a limit.
    """
    config: Any = _text_config(backbone)
    named = [*backbone.named_modules(), *backbone.named_buffers()]
    has_table = any(_POSITION_TABLE.fullmatch(name) for name, _ in named)
    end = window(backbone) - first_position(backbone) if has_table else ENDLESS
    return min(end, _rope_limit(config))


def first_position(backbone: nn.Module) -> int:
    """The position of a text's first token: 0, or the one after that of padding, as in RoBERTa's table."""
    for name, module in backbone.named_modules():
        if _POSITION_TABLE.fullmatch(name) and getattr(module, "padding_idx", None) is not None:
            return int(getattr(module, "padding_idx")) + 1  # noqa: B009
    return 0


def window(backbone: nn.Module) -> int:
    """Maximum number of tokens, prompt and response together, that the backbone was made for."""
    config: Any = _text_config(backbone)
    maximum = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or ENDLESS
    return min(int(maximum), _rope_limit(config))


def _text_config(backbone: nn.Module) -> Any:
    config: Any = backbone.config
    return config.get_text_config()


def _rope_limit(config: Any) -> int:
    """Maximum sequence length with unchanged rotary frequencies."""
    rope_settings = getattr(config, "rope_parameters", None) or {}
    per_layer = (
        rope_settings.values() if all(isinstance(value, dict) for value in rope_settings.values()) else [rope_settings]
    )
    bounds = [ENDLESS]
    for rope in per_layer:
        kind = rope.get("rope_type", "default")
        if "dynamic" in kind:
            bounds.append(config.max_position_embeddings)
        elif kind == "longrope":
            bounds.append(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    return min(bounds)
