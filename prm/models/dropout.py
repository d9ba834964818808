"""Switches off the backbone's dropout: only adapters have any, `lora.lora_dropout`."""

import re
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

_DROPOUT_KEYS = re.compile("drop")  # names of probabilities: attn_pdrop, hidden_dropout, layerdrop
_JITTER_KEYS = re.compile("(input_)?jitter_noise|moe_jitter_eps")  # training noise of routers


def without_dropout(backbone: nn.Module) -> None:
    """Set dropout probabilities and jitter noise to 0, in the backbone's modules, their attributes and configs.

    The reference and all later scoring run without dropout, so training must, too.
    """
    for name, module in backbone.named_modules():
        if "lora_" in name:
            continue
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        _set_to_zero(module, lambda key: _DROPOUT_KEYS.search(key) or _JITTER_KEYS.fullmatch(key))
        if hasattr(module, "config"):
            _set_to_zero(module.config, _DROPOUT_KEYS.search)


def _set_to_zero(holder: Any, matches: Callable[[str], object]) -> None:
    for key, value in list(vars(holder).items()):
        if type(value) is float and matches(key):
            setattr(holder, key, 0.0)
