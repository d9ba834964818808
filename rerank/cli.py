"""The `rerank` command: best-of-N responses for a user."""

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from prm.checkpoint.config_file import read_config
from prm.checks import Count, built
from prm.cli.arguments import run_command
from prm.cli.parsing import Parser, typed
from prm.config import Device, Dtype
from prm.data.comparison import parse_prompt, require_text
from prm.errors import DataError, PrmError
from prm.io.tables import read_rows, read_values, write_jsonl
from prm.models.backbone_paths import is_run, locate
from prm.scoring.user_warnings import warn_about_users
from rerank.curves.commands import build_curve_parser, curve_command
from rerank.ranking.strategy_flag import Strategy, help_text
from rerank.sampling.config import Sampling

logger = logging.getLogger(__name__)

_SAMPLES = 16  # responses to a prompt, unless -n says otherwise


def build_parser() -> Parser:
    """Build the command's parser."""
    parser = Parser(
        prog="rerank",
        description="Sample N responses to a prompt, or read them from a file, and rank them for a user. "
        "Requests come from flags, or from a JSON Lines file with prompt, user_id and, optionally, responses. "
        "'rerank curve' shows how reward and win rate grow with N.",
    )
    parser.add_package_flags(_with_curve)
    parser.add_argument(
        "run", help="run folder of 'prm train' or 'policy dpo' that scores; for other runs see --generator"
    )
    parser.add_argument("--prompt", help="the prompt")
    parser.add_argument("--user", help="user id; the generic user if left out")
    parser.add_argument("--user_text", default="", help="the user's text about themselves")
    parser.add_argument("-n", "--n", type=typed(Count), help=f"responses to sample; {_SAMPLES} if left out")
    parser.add_argument(
        "--candidates",
        help="responses to rank: a .txt file with one per line; for multi-line responses, a .jsonl file with "
        """one {"response": "..."} per line""",
    )
    parser.add_argument("--strategy", default="best", help=f"how candidates are ranked: {help_text()}")
    parser.add_argument("--input", help="JSON Lines file of requests")
    parser.add_argument("--output", help="JSON Lines file to write; the terminal if left out")
    parser.add_argument("--json", action="store_true", help="print JSON Lines")
    parser.add_argument(
        "--generator",
        help="model that samples the responses: a policy's run folder, or a causal language model by name, folder or "
        "hub id; default: the run itself if it is a policy, otherwise smollm2-135m",
    )
    parser.add_argument(
        "--dtype",
        choices=get_args(Dtype),
        default="auto",
        help="dtype of the generator's weights; auto: a run's training dtype, otherwise bfloat16 if the device "
        "supports it",
    )
    parser.add_settings(Sampling, "sampling")
    parser.add_argument("--backbone", help="new path of the reward model's backbone, if it was moved")
    parser.add_argument("--device", type=typed(Device), help="cpu, cuda, ...; chosen if left out")
    return parser


def _with_curve() -> Parser:
    """A parser of the flags of 'rerank' and of 'rerank curve', for completion."""
    parser = build_parser()
    for action in build_curve_parser()._actions:
        if not parser._option_string_actions.keys() & set(action.option_strings) and action.dest != "run":
            parser._add_action(action)
    return parser


def read_candidates(path: str) -> list[str]:
    """Read responses: one per line of a `.txt` file, else a JSON string or object with `response` per line.

    Raises `DataError` naming file and line.
    """
    responses, line_numbers = [], list[int]()
    for number, value in read_values(path):
        line_numbers.append(number)
        response = value.get("response") if isinstance(value, dict) else value
        try:
            require_text("response", response)
        except DataError as error:
            fault = f"expected a text, or an object with the text 'response': {error}"
            raise DataError(f"{path}, line {number}: {fault}") from None
        responses.append(str(response))
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


def read_requests(args: Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Read (location, request) pairs from the flags or the file; a request has prompt, user_id, perhaps responses."""
    if (args.input is None) == (args.prompt is None):
        raise PrmError("give either --prompt, or --input FILE")
    if args.input is None:
        request = {"prompt": args.prompt, "user_id": args.user, "user_text": args.user_text}
        candidates = {"responses": read_candidates(args.candidates)} if args.candidates else {}
        return [("the command line", request | candidates)]
    if args.user is not None or args.user_text or args.candidates:
        raise PrmError("--user, --user_text and --candidates go with --prompt: with --input set them in each row")
    requests = []
    for number, row in read_rows(args.input):
        location = f"{args.input}, line {number}"
        try:
            parse_prompt(row.get("prompt"))
        except DataError as error:
            raise DataError(f"{location}: {error}") from None
        if "response" in row:
            raise DataError(f"{location}: give the responses as a list under 'responses'; 'response' is ignored")
        responses = row.get("responses", [""])
        if not (isinstance(responses, list) and responses and all(isinstance(r, str) for r in responses)):
            raise DataError(f"{location}: 'responses' must be a list of texts")
        if not isinstance(row.get("user_id"), str | None) or not isinstance(row.get("user_text", ""), str):
            raise DataError(f"{location}: 'user_id' and 'user_text' must be text")
        requests.append((location, row))
    return requests


def refuse_missing_models(args: Namespace) -> None:
    """Raise `PrmError` for a run, a backbone or a generator that is not there."""
    read_config(Path(args.run))
    if args.backbone is not None:
        locate(args.backbone)
    if args.generator is not None and not is_run(args.generator):
        locate(args.generator)


def rank_requests(
    args: Namespace, requests: list[tuple[str, dict[str, Any]]], sampling: Sampling, strategy: Strategy
) -> Iterator[dict[str, Any]]:
    """Yield each request with `ranking`: candidates, best first, each with its text and reward."""
    refuse_missing_models(args)
    from prm.models.backbones import device_named
    from prm.scoring.scorer import Scorer  # slow to import: wrong arguments are refused before
    from rerank.ranking.ranker import Ranker
    from rerank.sampling.open_sampler import open_sampler

    scorer = Scorer.from_pretrained(args.run, args.backbone, device_named(args.device))
    warn_about_users(scorer, [request.get("user_id") for _, request in requests])
    num_to_sample = sum("responses" not in request for _, request in requests)
    to_each = f" to each of {num_to_sample} prompts" if num_to_sample > 1 else ""
    n = args.n or _SAMPLES
    what = f"{n} responses of up to {sampling.max_new_tokens} tokens{to_each}" if num_to_sample else ""
    needs_sampler = num_to_sample or strategy.name == "regularised"
    sampler = open_sampler(args, scorer, what) if needs_sampler else None
    ranker = Ranker(scorer, sampler, n, sampling, strategy)
    for location, request in requests:
        try:
            yield ranker.answer(request)
        except PrmError as error:
            raise DataError(f"{location}: {error}") from None


def rerank_command(args: Namespace) -> None:
    """Rank each request's candidates, and print or write them."""
    sampling, strategy = built(Sampling, args.settings.get("sampling", {}), "sampling"), Strategy.parse(args.strategy)
    requests = read_requests(args)
    if args.n is not None and all("responses" in request for _, request in requests):
        raise PrmError(f"-n {args.n}: the responses are given, and none is sampled: leave out -n")
    rows = rank_requests(args, requests, sampling, strategy)
    if args.output:
        write_jsonl(args.output, rows)
    elif args.json or args.input:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False), flush=True)
    else:
        for row in rows:
            print_ranking(row)


def print_ranking(row: dict[str, Any]) -> None:
    """Print one request's candidates, best first."""
    from prm.report import show, table

    user = row["user_id"] if row["known_user"] else "the generic user"
    if row["user_id"] and not row["known_user"]:
        user += f" ({row['user_id']!r} is not in the model)"
    columns = [name for name in row["ranking"][0] if name != "text"]
    ranked = [[*(f"{r[name]:+.3f}" for name in columns), r["text"]] for r in row["ranking"]]
    head = [*(name.replace("_", " ") for name in columns), "response"]
    show(table(f"{len(ranked)} responses ranked for {user}", head, ranked, numeric=len(head)))


def main(argv: list[str] | None = None) -> None:
    """Entry point of `rerank`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["curve"]:  # a run folder of that name can be given as ./curve
        run_command(build_curve_parser(), arguments[1:], curve_command)
    else:
        run_command(build_parser(), arguments, rerank_command)
