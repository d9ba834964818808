"""Open the generator that a command or a caller names."""

import logging
from argparse import Namespace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prm.errors import PrmError
from prm.io.endpoint import Endpoint, is_url
from prm.io.folders import is_run
from prm.io.tables import kind
from prm.models.backbone_paths import EMBEDDED, locate
from prm.models.backbones import device_named
from prm.models.policy_model import Policy
from prm.scoring.scorer import Scorer
from rerank.ranking.candidates import LocalGenerator
from rerank.sampling.config import Sampling
from rerank.sampling.endpoint_generator import TIMEOUT, EndpointGenerator
from rerank.sampling.generator import FunctionGenerator, GeneratingFunction, Generator
from rerank.sampling.generator_flags import endpoint_generator
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

LanguageModel = tuple[PreTrainedModel, PreTrainedTokenizerBase]
GeneratorLike = str | Path | Endpoint | Sampler | LanguageModel | GeneratingFunction


def open_named(args: Namespace, scorer: Scorer, sampling: Sampling, what: str) -> Generator:
    """Open `--generator`; by default the run itself if it is a policy, otherwise the embedded model.

    Args:
        args: `run`, `dtype`, `device` and the flags of a generator.
        what: description of the samples, for the log; may be empty.
    """
    name = args.generator or (args.run if isinstance(scorer.model, Policy) else EMBEDDED)
    hint = ", a very small model: name a better one with --generator" if name == EMBEDDED else ""
    if what:
        note = "rewards measure what users like, not what is true"
        logger.info("%s are sampled from %s%s; %s", what, name, hint, note)
    if is_url(name):
        return endpoint_generator(args, sampling)
    return LocalGenerator(
        Sampler.from_pretrained(name, device_named(args.device), args.dtype, scorer.day), scorer, sampling
    )


def as_generator(source: GeneratorLike, scorer: Scorer, sampling: Sampling) -> Generator:
    """The generator that a caller passes.

    Args:
        source: an endpoint or its URL, a sampler, a policy's run folder or a language model's name, a transformers
            model with its tokenizer, or a function of prompt, n and user id.

    Raises `PrmError` for anything else, and if it cannot be loaded.
    """
    if isinstance(source, str) and is_url(source):
        source = Endpoint(source, timeout=TIMEOUT)
    if isinstance(source, Endpoint):
        return EndpointGenerator(source, sampling)
    if isinstance(source, str | Path):
        name = str(source)
        if not is_run(name):
            locate(name)
        source = Sampler.from_pretrained(name, scorer.reader.device, day=scorer.day)
    elif isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], PreTrainedModel):
        source = Sampler.from_model(*source, day=scorer.day)
    if isinstance(source, Sampler):
        return LocalGenerator(source, scorer, sampling)
    if callable(source) and not isinstance(source, PreTrainedModel):
        return FunctionGenerator(source)
    raise PrmError(
        f"'generator' must be a URL, a run folder or a model's name, an Endpoint, a Sampler, (model, tokenizer) or a "
        f"function, got {kind(source)}"
    )
