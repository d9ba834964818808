"""The digest of all that determines the features of a run's linear heads, whoever computes them."""

import hashlib
import json

from peft import PeftModel

from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.formats import texts_fingerprint
from prm.models.backbones import reading_settings, template_fingerprint, tokenizer_fingerprint
from prm.models.reward_model import RewardModel
from prm.models.saved_adapters import adapter_digest


def feature_digest(checkpoint: Checkpoint[RewardModel]) -> str:
    """Hex digest of backbone, adapter, tokenizer, chat template, encoding of texts, and which states are read.

    It does not depend on users: an export stays valid when `prm adapt` adds some. Nor on the dtype.
    """
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    parts = [
        model.fingerprint,
        reading_settings(model.config),
        adapter_digest(model.backbone) if isinstance(model.backbone, PeftModel) else "",
        tokenizer_fingerprint(tokenizer),
        template_fingerprint(tokenizer),
        texts_fingerprint(checkpoint.encoder()),
        model.feature_spec,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
