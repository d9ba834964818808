"""The features that a head reads: hidden states of some layers, each pooled, concatenated. Does not import torch."""

import re
from collections.abc import Sequence

from prm.errors import PrmError, shown

LayerPooling = tuple[int, str]  # (number of layers, pooling)
FeatureSpec = tuple[LayerPooling, ...]  # one or more, without repeats: h [k d] is their concatenation in this order

_ENTRY = re.compile(r"([1-9][0-9]{0,3}) (last|mean)")


def parse_features(reads: Sequence[str]) -> FeatureSpec:
    """Parse entries like `15 mean`. Raises `PrmError` for invalid and duplicate entries."""
    settings: list[LayerPooling] = []
    for entry in reads:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise PrmError(
                f"config key 'reward.features' holds {shown(entry)}: write layers and pooling, as in '15 mean'"
            )
        setting = (int(match[1]), match[2])
        if setting in settings:
            raise PrmError(f"config key 'reward.features' names {entry!r} twice")
        settings.append(setting)
    return tuple(settings)


def words(spec: FeatureSpec) -> list[str]:
    """The entries of `reward.features` for these features; the inverse of `parse_features`."""
    return [f"{layers} {pooling}" for layers, pooling in spec]


def depth(spec: FeatureSpec) -> int:
    """Number of layers that the backbone must run for these features."""
    return max(layers for layers, _ in spec)
