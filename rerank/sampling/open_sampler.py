"""Load the generator of a command."""

import logging
from argparse import Namespace

from prm.models.backbone_paths import EMBEDDED
from prm.models.backbones import device_named
from prm.models.policy_model import Policy
from prm.scoring.scorer import Scorer
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)


def open_sampler(args: Namespace, scorer: Scorer, what: str) -> Sampler:
    """Load `--generator`; by default the run itself if it is a policy, otherwise the embedded model.

    Args:
        args: `run`, `generator`, `dtype` and `device` of a command.
        what: description of the samples, for the log; may be empty.
    """
    name = args.generator or (args.run if isinstance(scorer.model, Policy) else EMBEDDED)
    hint = ", a very small model: name a better one with --generator" if name == EMBEDDED else ""
    if what:
        note = "rewards measure what users like, not what is true"
        logger.info("%s are sampled from %s%s; %s", what, name, hint, note)
    return Sampler.from_pretrained(name, device_named(args.device), args.dtype, scorer.day)
