"""Requests of the commands, from flags and from request files. Imports no torch."""

import logging
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from prm.checkpoint.config_file import read_config
from prm.checks import Count
from prm.cli.parsing import Parser, typed
from prm.config import Device
from prm.data.comparison import as_id, parse_prompt, require_text
from prm.errors import DataError, PrmError
from prm.io.tables import read_rows, read_values
from prm.models.backbone_paths import locate
from rerank.sampling.config import Sampling
from rerank.sampling.generator import Request, Response
from rerank.sampling.generator_flags import add_generator_flags, refuse_missing_generator

logger = logging.getLogger(__name__)

SAMPLES = 16  # responses to a prompt, unless -n says otherwise


def add_request_flags(parser: Parser) -> None:
    """Add the flags of a command's run, its requests, and the generator of their responses."""
    parser.add_argument(
        "run", help="run folder of 'prm train' or 'policy dpo' that scores; for other runs see --generator"
    )
    parser.add_argument("--prompt", help="the prompt")
    parser.add_argument("--user", help="user id; the generic user if left out")
    parser.add_argument("--user_text", default="", help="the user's text about themselves")
    parser.add_argument("-n", "--n", type=typed(Count), help=f"responses to sample; {SAMPLES} if left out")
    parser.add_argument(
        "--candidates",
        help="responses to rank: a .txt file with one per line; for multi-line responses, a .jsonl file with "
        """one {"response": "..."} per line""",
    )
    parser.add_argument("--input", help="JSON Lines file of requests")
    add_generator_flags(parser)
    parser.add_argument("--backbone", help="new path of the reward model's backbone, if it was moved")
    parser.add_argument("--device", type=typed(Device), help="cpu, cuda, ...; chosen if left out")


def refuse_missing_models(args: Namespace, sampling: Sampling) -> None:
    """Raise `PrmError` for a run, a backbone or a generator that is not there."""
    refuse_missing_generator(args, sampling)
    read_config(Path(args.run))
    if args.backbone is not None:
        locate(args.backbone)


def read_candidates(path: str) -> list[Response]:
    """Read responses: one per line of a `.txt` file, else a JSON string or object with `response` per line.

    An object may have `ended`, as in the files of `policy sample`. Raises `DataError` naming file and line.
    """
    responses, line_numbers = [], list[int]()
    for number, value in read_values(path):
        line_numbers.append(number)
        try:
            response = _response(value, "response")
            require_text("response", response.text)
        except DataError as error:
            fault = f"expected a text, or an object with the text 'response': {error}"
            raise DataError(f"{path}, line {number}: {fault}") from None
        responses.append(response)
    if path.endswith(".txt"):
        logger.info("%s: %d responses, one per line", path, len(responses))
        gaps = {after - before for before, after in pairwise(line_numbers)}
        if 1 in gaps and len(gaps) > 1:  # some lines are adjacent, others separated by blank lines
            logger.warning(
                "warning: %s: blank lines separate blocks of lines, but each line was read as one response; put "
                'multi-line responses into a .jsonl file, one {"response": "..."} per line',
                path,
            )
    return responses


def read_requests(args: Namespace) -> list[Request]:
    """Read the requests of a command from its flags or its file.

    Raises `PrmError` for flags that do not go together, and `DataError` naming the line of a bad row.
    """
    requests = _requests(args)
    if args.n is not None and all(request.responses is not None for request in requests):
        raise PrmError(f"-n {args.n}: the responses are given, and none is sampled: leave out -n")
    return requests


def _requests(args: Namespace) -> list[Request]:
    if (args.input is None) == (args.prompt is None):
        raise PrmError("give either --prompt, or --input FILE")
    if args.input is None:
        candidates = tuple(read_candidates(args.candidates)) if args.candidates else None
        row = {"prompt": args.prompt, "user_id": args.user, "user_text": args.user_text}
        return [replace(parse_request(row, "the command line"), responses=candidates)]
    if args.user is not None or args.user_text or args.candidates:
        raise PrmError("--user, --user_text and --candidates go with --prompt: with --input set them in each row")
    return [parse_request(row, f"{args.input}, line {number}") for number, row in read_rows(args.input)]


def parse_request(row: Mapping[str, object], location: str) -> Request:
    """A row of a request file.

    `responses` are texts, or objects as in a file of candidates; the `ranking` of an earlier `rerank` is taken for
    them too. Raises `DataError`, which starts with the location.
    """
    try:
        return replace(request_of(row), location=location)
    except DataError as error:
        raise DataError(f"{location}: {error}") from None


def request_of(row: Mapping[str, object]) -> Request:
    """`parse_request` of a row without a location, which the `DataError` lacks, too."""
    prompt = parse_prompt(row.get("prompt"))
    if "response" in row:
        raise DataError("give the responses as a list under 'responses'; 'response' is ignored")
    given, user_text = row.get("user_id"), row.get("user_text", "")
    user = None if given is None else as_id("user_id", given)
    if not isinstance(user_text, str):
        raise DataError("'user_text' must be text")
    return Request(prompt, user, user_text, _responses(row), row)


def _responses(row: Mapping[str, object]) -> tuple[Response, ...] | None:
    name, key = ("responses", "response") if "responses" in row else ("ranking", "text")
    if name not in row:
        return None
    given = row[name]
    if not isinstance(given, list) or not given:
        raise DataError(f"'{name}' must be a list of texts")
    try:
        return tuple(_response(value, key) for value in given)
    except DataError as error:
        raise DataError(f"'{name}' must be a list of texts: {error}") from None


def _response(value: object, key: str) -> Response:
    """A response from text, or from an object with its text under `key`."""
    text, ended = (value.get(key), value.get("ended")) if isinstance(value, dict) else (value, None)
    if not isinstance(text, str):
        require_text(key, text)
    if not isinstance(ended, bool | None):
        raise DataError("'ended' must be true or false")
    return Response(str(text), ended)
