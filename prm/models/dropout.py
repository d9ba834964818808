"""A backbone drops nothing of its own: only adapters may, by `lora.lora_dropout`."""

import re
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

_DROPS = re.compile("drop")  # as models and configs call their probabilities: attn_pdrop, hidden_dropout, layerdrop
_DISTURBS = re.compile("(input_)?jitter_noise|moe_jitter_eps")  # factors of routers in training


def without_dropout(backbone: nn.Module) -> None:
    """Set to 0 all that a backbone drops or disturbs at random in training, in its modules and in their configs.

    Layers read such numbers from a module, an attribute of their own or the config. A policy's reference is read
    without any, and so is whatever is scored later.
    """
    for name, module in backbone.named_modules():
        if "lora_" in name:
            continue
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        _set_to_zero(module, lambda key: _DROPS.search(key) or _DISTURBS.fullmatch(key))
        if hasattr(module, "config"):
            _set_to_zero(module.config, _DROPS.search)


def _set_to_zero(holder: Any, wanted: Callable[[str], object]) -> None:
    for key, value in list(vars(holder).items()):
        if type(value) is float and wanted(key):
            setattr(holder, key, 0.0)
