"""What a run's format stands for, and whether its texts are read as they were in training."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from prm.data.comparison import Message, Prompt
from prm.data.encoding import TextEncoder
from prm.errors import CheckpointError, DataError

# 1, refused: users in a prefix stood before a beginning-of-text token, an answer ends with all that the chat template
#    writes behind it but line ends, a template that asks for the date gets today's, and files have no digests
# 2, refused: settings and stored tensors had other names
# 3: settings and tensors have their present names; a prefix stands after a beginning-of-text token, an answer ends as
#    `prm.data.chat_template.ending_of` says, the date is that of training
FORMAT = 3

_LONG = 1 << 20  # tokens: no probe is ever cut
_PROBES: tuple[tuple[Prompt, str], ...] = (
    ("Why?", ""),
    (
        (Message("system", "Be brief."), Message("user", "Why?"), Message("assistant", "So."), Message("user", "Oh?")),
        "I",
    ),
)


def texts_fingerprint(encoder: TextEncoder) -> str:
    """Hex digest of what is read of some texts: what the chat template writes, and where everything stands."""
    encoder = copy.copy(encoder)
    encoder.max_length = _LONG
    found: list[Any] = [encoder.stop_ids]
    for prompt, user_text in _PROBES:
        try:
            found.append(encoder.encode(prompt, "Because.", 1, user_text))
        except DataError:  # a template for other conversations
            found.append("refused")
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def refuse_other_texts(config: dict[str, Any], encoder: TextEncoder, folder: Path) -> None:
    """Raise `CheckpointError` where a run's texts would not be read as they were in training.

    Args:
        config: of the run, as `config.json` has it.
    """
    if (found := texts_fingerprint(encoder)) != (expected := config["fingerprints"].get("texts")):
        raise CheckpointError(
            f"{folder}: texts are read otherwise than in training ({found} now, not {expected}): special tokens of "
            "the tokenizer, or what puts texts together, have changed; train it again, or load what it was trained with"
        )
