"""The flags that name a generator, for several commands. Imports no torch: wrong ones are refused early."""

from argparse import Namespace
from typing import get_args

from prm.checks import Count, Positive
from prm.cli.parsing import Parser, typed
from prm.config import Dtype
from prm.errors import PrmError
from prm.io.endpoint import Endpoint, is_url
from prm.io.folders import is_run
from prm.models.backbone_paths import locate
from rerank.sampling.config import Sampling
from rerank.sampling.endpoint_generator import TIMEOUT, EndpointGenerator

_OF_ENDPOINTS = ("generator_model", "generator_options", "key_variable", "timeout", "concurrency")


def add_generator_flags(parser: Parser) -> None:
    """Add the flags of a generator and of how it samples."""
    parser.add_argument(
        "--generator",
        help="model that samples the responses: a policy's run folder, a causal language model by name, folder or hub "
        "id, or the URL of an OpenAI-compatible endpoint, up to /v1; default: the run itself if it is a policy, "
        "otherwise smollm2-135m",
    )
    parser.add_argument(
        "--generator_model", help="the model's name at the endpoint; may be left out if the server has a single one"
    )
    parser.add_argument(
        "--generator_options",
        type=typed(dict[str, object]),
        metavar="{...}",
        help="further fields of each request to the endpoint, laid over the sampling settings; null leaves a field "
        'out: {"top_k": 20, "seed": null}',
    )
    variable = Endpoint.key_variable
    parser.add_argument("--key_variable", help=f"environment variable with the endpoint's API key; {variable}")
    seconds = f"seconds until a request to the endpoint is given up; {TIMEOUT:g}"
    parser.add_argument("--timeout", type=typed(Positive), help=seconds)
    number = f"requests to the endpoint that are in flight together; {Endpoint.concurrency}"
    parser.add_argument("--concurrency", type=typed(Count), help=number)
    parser.add_argument(
        "--dtype",
        choices=get_args(Dtype),
        default="auto",
        help="dtype of the generator's weights; auto: a run's training dtype, otherwise bfloat16 if the device "
        "supports it",
    )
    parser.add_settings(Sampling, "sampling")


def refuse_missing_generator(args: Namespace, sampling: Sampling) -> None:
    """Raise `PrmError` for a generator that is not there, and for flags or settings that it does not have."""
    if args.generator is not None and is_url(args.generator):
        endpoint_generator(args, sampling)
        return
    if given := [name for name in _OF_ENDPOINTS if getattr(args, name) is not None]:
        raise PrmError(f"--{given[0]} goes with --generator URL, an endpoint")
    if args.generator is not None and not is_run(args.generator):
        locate(args.generator)


def endpoint_generator(args: Namespace, sampling: Sampling) -> EndpointGenerator:
    """The endpoint that the flags name. Raises `PrmError` for an invalid one."""
    names = {"generator_model": "model", "generator_options": "options", "key_variable": "key_variable"}
    given = {name: getattr(args, flag) for flag, name in names.items() if getattr(args, flag) is not None}
    timeout, concurrency = args.timeout or TIMEOUT, args.concurrency or Endpoint.concurrency
    endpoint = Endpoint(args.generator, timeout=timeout, concurrency=concurrency, **given)
    return EndpointGenerator(endpoint, sampling)
