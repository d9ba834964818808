"""How many tokens a backbone can read before it stops, or reads what is short otherwise because of what is long."""

import re
from typing import Any

from torch import nn

ENDLESS = 1 << 30  # of a backbone that knows no positions
_TABLE = re.compile(r"(.*\.)?(wpe|embed_positions|positions_embed|pos_encoding)")  # positions that end


def reach(backbone: nn.Module) -> int:
    """Most tokens of a sequence that is read, and read the same whatever stands beside it.

    A table of positions ends. Rotary frequencies of the kinds `dynamic` and `longrope` change for the whole pass as
    soon as one sequence in it is longer than a bound: within it no score depends on what else is asked for.
    """
    config: Any = _text_config(backbone)
    named = [*backbone.named_modules(), *backbone.named_buffers()]
    ends = any(_TABLE.fullmatch(name) for name, _ in named)
    return min(window(backbone) if ends else ENDLESS, _steady(config))


def window(backbone: nn.Module) -> int:
    """Most tokens of prompt and answer together that the backbone was made for."""
    config: Any = _text_config(backbone)
    made_for = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None) or ENDLESS
    return min(int(made_for), _steady(config))


def _text_config(backbone: nn.Module) -> Any:
    config: Any = backbone.config
    return config.get_text_config()


def _steady(config: Any) -> int:
    """The longest pass whose rotary frequencies are those of the shortest."""
    given = getattr(config, "rope_parameters", None) or {}
    of_layers = given.values() if all(isinstance(value, dict) for value in given.values()) else [given]
    bounds = [ENDLESS]
    for rope in of_layers:
        kind = rope.get("rope_type", "default")
        if "dynamic" in kind:
            bounds.append(config.max_position_embeddings)
        elif kind == "longrope":
            bounds.append(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    return min(bounds)
