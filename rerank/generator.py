"""Who writes the answers of a command."""

import logging

import torch

from prm.backbones import EMBEDDED
from prm.causal import Policy
from prm.scorer import Scorer
from rerank.candidates import Sampler

logger = logging.getLogger(__name__)


def open_sampler(generator: str | None, run: str, scorer: Scorer, device: str | None, what: str = "") -> Sampler:
    """The named generator; if none is, the run itself where it is a policy, else the embedded model.

    Args:
        what: is going to be sampled, for the log.
    """
    name = generator or (run if isinstance(scorer.model, Policy) else EMBEDDED)
    small = ", a very small model: name a better one with --generator" if name == EMBEDDED else ""
    if what:
        note = "rewards say what people like, not what is true"
        logger.info("%s are sampled from %s%s; %s", what, name, small, note)
    return Sampler.from_pretrained(name, torch.device(device) if device else None)
