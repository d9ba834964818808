"""The `rerank` command: the best of N answers for a person."""

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args

from prm.checks import Count, built
from prm.cli.arguments import run_command
from prm.cli.parsing import Parser, typed
from prm.config import Dtype
from prm.data.comparison import parse_prompt, require_text
from prm.errors import DataError, PrmError
from prm.io.tables import read_rows, read_values, write_jsonl
from prm.scoring.user_warnings import warn_about_users
from rerank.curves.commands import build_curve_parser, curve_command
from rerank.ranking.strategy_flag import Strategy, help_text
from rerank.sampling.config import Sampling

logger = logging.getLogger(__name__)


def build_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(
        prog="rerank",
        description="Sample N answers to a prompt, or take given ones, and rank them for a person. "
        "Requests come from flags, or from a JSON Lines file with prompt, user_id and, where the answers are "
        "given, responses. 'rerank curve' shows what N buys.",
    )
    parser.add_argument("run", help="run folder that scores, of 'prm train' or 'policy dpo'; others are --generator")
    parser.add_argument("--prompt", help="the prompt")
    parser.add_argument("--user", help="user id; the unknown user if left out")
    parser.add_argument("--user_text", default="", help="what the person says about themselves")
    parser.add_argument("-n", "--n", type=typed(Count), default=16, help="answers to sample")
    parser.add_argument(
        "--candidates",
        help="given answers: a .txt file with one a line; where answers have several lines, a .jsonl file with "
        """one {"response": "..."} a line""",
    )
    parser.add_argument("--strategy", default="best", help=f"how candidates are ranked: {help_text()}")
    parser.add_argument("--input", help="JSON Lines file of requests")
    parser.add_argument("--output", help="JSON Lines file to write; the screen if left out")
    parser.add_argument("--json", action="store_true", help="print JSON Lines")
    parser.add_argument(
        "--generator",
        help="who writes the answers: a policy's run folder, or a causal language model by name, folder or hub id; "
        "the run itself where it is a policy, else smollm2-135m",
    )
    parser.add_argument(
        "--dtype",
        choices=get_args(Dtype),
        default="auto",
        help="of the generator's weights; auto: as a run was trained, else bfloat16 where the device computes in it",
    )
    parser.add_settings(Sampling, "sampling")
    parser.add_argument("--backbone", help="where the reward model's backbone lies now, if moved")
    parser.add_argument("--device", help="cpu, cuda, ...; chosen if left out")
    return parser


def read_candidates(path: str) -> list[str]:
    """Answers of a `.txt` file, one a line, or of one with a JSON text or object with `response` per line.

    Raises `DataError`.
    """
    answers, places = [], list[int]()
    for number, value in read_values(path):
        places.append(number)
        answer = value.get("response") if isinstance(value, dict) else value
        try:
            require_text("response", answer)
        except DataError as error:
            fault = f"expected a text, or an object with the text 'response': {error}"
            raise DataError(f"{path}, line {number}: {fault}") from None
        answers.append(str(answer))
    if path.endswith(".txt"):
        logger.info("%s: %d answers, one a line", path, len(answers))
        steps = {after - before for before, after in pairwise(places)}
        if 1 in steps and len(steps) > 1:  # lines that follow one another, and blank lines between them
            logger.warning(
                "warning: %s: blank lines part blocks of lines, and each line was read as an answer; put answers of "
                'several lines into a .jsonl file, one {"response": "..."} a line',
                path,
            )
    return answers


def read_requests(args: Namespace) -> list[tuple[str, dict[str, Any]]]:
    """(where it stands, request) of the flags or the file; a request has prompt, user_id and perhaps responses."""
    if (args.input is None) == (args.prompt is None):
        raise PrmError("give either --prompt, or --input FILE")
    if args.input is None:
        request = {"prompt": args.prompt, "user_id": args.user, "user_text": args.user_text}
        given = {"responses": read_candidates(args.candidates)} if args.candidates else {}
        return [("the command line", request | given)]
    if args.user is not None or args.user_text or args.candidates:
        raise PrmError("--user, --user_text and --candidates go with --prompt: in a file each row has its own")
    requests = []
    for number, row in read_rows(args.input):
        place = f"{args.input}, line {number}"
        try:
            parse_prompt(row.get("prompt"))
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        if "response" in row:
            raise DataError(f"{place}: give the answers as a list under 'responses'; 'response' is not read")
        given = row.get("responses", [""])
        if not (isinstance(given, list) and given and all(isinstance(r, str) for r in given)):
            raise DataError(f"{place}: 'responses' must be a list of texts")
        if not isinstance(row.get("user_id"), str | None) or not isinstance(row.get("user_text", ""), str):
            raise DataError(f"{place}: 'user_id' and 'user_text' must be text")
        requests.append((place, row))
    return requests


def answer(
    args: Namespace, requests: list[tuple[str, dict[str, Any]]], sampling: Sampling, strategy: Strategy
) -> Iterator[dict[str, Any]]:
    """Each request with `ranking`: candidates best first, each with its text and reward."""
    from prm.scoring.scorer import Scorer  # slow to import; bad flags should not have to wait for it
    from rerank.ranking.ranker import Ranker
    from rerank.sampling.open import open_sampler

    scorer = Scorer.from_pretrained(args.run, args.backbone, args.device)
    warn_about_users(scorer, [request.get("user_id") for _, request in requests])
    unanswered = sum("responses" not in request for _, request in requests)
    to_each = f" to each of {unanswered} prompts" if unanswered > 1 else ""
    what = f"{args.n} answers of up to {sampling.max_new_tokens} tokens{to_each}" if unanswered else ""
    needed = unanswered or strategy.name == "regularised"
    sampler = open_sampler(args, scorer, what) if needed else None
    ranker = Ranker(scorer, sampler, args.n, sampling, strategy)
    for place, request in requests:
        try:
            yield ranker.answer(request)
        except PrmError as error:
            raise DataError(f"{place}: {error}") from None


def rerank_command(args: Namespace) -> None:
    """Rank, and print or write."""
    sampling, strategy = built(Sampling, args.settings.get("sampling", {}), "sampling"), Strategy.parse(args.strategy)
    rows = answer(args, read_requests(args), sampling, strategy)
    if args.output:
        write_jsonl(args.output, rows)
    elif args.json or args.input:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False), flush=True)
    else:
        for row in rows:
            print_ranking(row)


def print_ranking(row: dict[str, Any]) -> None:
    """One request's candidates on the terminal, best first."""
    from prm.report import show, table

    who = row["user_id"] if row["known_user"] else "the unknown user"
    if row["user_id"] and not row["known_user"]:
        who += f" ({row['user_id']!r} is not in the model)"
    shown = [name for name in row["ranking"][0] if name != "text"]
    ranked = [[*(f"{r[name]:+.3f}" for name in shown), r["text"]] for r in row["ranking"]]
    head = [*(name.replace("_", " ") for name in shown), "answer"]
    show(table(f"{len(ranked)} answers ranked for {who}", head, ranked, numeric=len(head)))


def main(argv: list[str] | None = None) -> None:
    """Entry point of `rerank`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["curve"]:  # a run folder of that name is ./curve
        run_command(build_curve_parser(), arguments[1:], curve_command)
    else:
        run_command(build_parser(), arguments, rerank_command)


if __name__ == "__main__":
    main()
