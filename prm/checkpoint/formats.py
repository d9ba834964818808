"""The check that a run's texts are encoded as in training."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from prm.data.comparison import Message, Prompt
from prm.data.encoding import TextEncoder
from prm.errors import CheckpointError, DataError

_NO_LIMIT = 1 << 20  # tokens: probes are never truncated
_PROBES: tuple[tuple[Prompt, str], ...] = (
    ("Why?", ""),
    (
        (Message("system", "Be brief."), Message("user", "Why?"), Message("assistant", "So."), Message("user", "Oh?")),
        "I",
    ),
)


def texts_fingerprint(encoder: TextEncoder) -> str:
    """Hex digest of the encodings of some probes: of the chat template's output and the position of each part."""
    encoder = copy.copy(encoder)
    encoder.max_length = _NO_LIMIT
    encodings: list[Any] = [encoder.stop_ids]
    for prompt, user_text in _PROBES:
        try:
            encodings.append(encoder.encode(prompt, "Because.", 1, user_text))
        except DataError:  # the template does not support such conversations
            encodings.append("refused")
    return hashlib.sha256(json.dumps(encodings).encode()).hexdigest()[:16]


def refuse_other_texts(expected: str, encoder: TextEncoder, folder: Path) -> None:
    """Raise `CheckpointError` if a run's texts would not be encoded as in training.

    Args:
        expected: the run's `texts_fingerprint`.
    """
    if (found := texts_fingerprint(encoder)) != expected:
        raise CheckpointError(
            f"{folder}: texts are encoded differently than in training ({found} now, not {expected}): the tokenizer's "
            "special tokens or the text encoder have changed; train it again, or load what it was trained with"
        )
