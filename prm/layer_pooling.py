"""What a head reads of a text: hidden states at some depths, each pooled, one behind the other. No torch here."""

import re
from collections.abc import Sequence

from prm.errors import PrmError, shown

Setting = tuple[int, str]  # (number of layers read through, pooling)
FeatureSpec = tuple[Setting, ...]  # one or more, each once: h [k d] is their concatenation in this order

_WORDS = re.compile(r"([1-9][0-9]{0,3}) (last|mean)")


def parse_features(reads: Sequence[str]) -> FeatureSpec:
    """The reading that entries like `15 mean` name. Raises `PrmError` for any other and for one that is there twice."""
    reading: list[Setting] = []
    for entry in reads:
        found = _WORDS.fullmatch(entry)
        if found is None:
            raise PrmError(
                f"config key 'reward.features' holds {shown(entry)}: write layers and pooling, as in '15 mean'"
            )
        setting = (int(found[1]), found[2])
        if setting in reading:
            raise PrmError(f"config key 'reward.features' names {entry!r} twice")
        reading.append(setting)
    return tuple(reading)


def words(reading: FeatureSpec) -> list[str]:
    """The entries of `reward.features` that `parse_features` takes for this reading."""
    return [f"{layers} {pooling}" for layers, pooling in reading]


def depth(reading: FeatureSpec) -> int:
    """Layers that must be run through for it."""
    return max(layers for layers, _ in reading)
