"""`rerank pairs`: chosen and rejected responses for training, from sampled or given ones."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prm.checks import built
from prm.cli.output import printing
from prm.cli.parsing import Parser, typed
from prm.errors import PrmError, counted
from prm.io.folders import refuse_existing
from prm.io.tables import write_jsonl
from rerank.pairs.rules import PairRules
from rerank.ranking.requests import SAMPLES, add_request_flags, read_requests, refuse_missing_models
from rerank.sampling.config import Sampling

if TYPE_CHECKING:
    from rerank.pairs.make import PairCounts


def build_pairs_parser() -> Parser:
    """Build the subcommand's parser."""
    parser = Parser(
        prog="rerank pairs",
        description="Sample N responses to each prompt, or take given ones, and write the best and the worst for each "
        "user as chosen and rejected: a log that 'policy dpo --data.path' and 'prm train --data.path' read.",
    )
    add_request_flags(parser)
    parser.add_argument(
        "--users", action="extend", nargs="+", default=[], help="user ids: make pairs of every prompt for each of them"
    )
    parser.add_settings(PairRules)
    parser.add_argument("--output", required=True, help="JSON Lines file to write")
    parser.add_argument(
        "--overwrite",
        type=typed(bool),
        nargs="?",
        const=True,
        default=False,
        metavar="true|false",
        help="replace the file",
    )
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    return parser


def pairs_command(args: Namespace) -> None:
    """Write the pairs, and print what became of the responses."""
    settings = dict(args.settings)
    sampling = built(Sampling, settings.pop("sampling", {}), "sampling")
    rules = built(PairRules, settings)
    if not args.overwrite:
        refuse_existing(Path(args.output), "name another file by --output, or replace it by --overwrite")
    requests = read_requests(args)
    if args.users:
        requests = [replace(request, user=user) for request in requests for user in args.users]
    if nobody := [request for request in requests if not request.user]:
        raise PrmError(f"{nobody[0].location}: a pair needs its user: give 'user_id', --user or --users")
    refuse_missing_models(args, sampling)

    from prm.models.backbones import device_named  # slow to import: wrong arguments are refused before
    from prm.scoring.scorer import Scorer
    from rerank.pairs.make import PairMaker
    from rerank.ranking.open_generator import open_named

    scorer = Scorer.from_pretrained(args.run, args.backbone, device_named(args.device))
    n, generator = args.n or SAMPLES, None
    if any(request.responses is None for request in requests):
        generator = open_named(
            args, scorer, sampling, f"{counted(n, 'response')} of up to {sampling.max_new_tokens} tokens"
        )
    maker = PairMaker(scorer, rules)
    made = maker.pairs(requests, generator, n)
    if (first := next(made, None)) is None:
        raise PrmError(f"there is no pair to write: {'; '.join(_account(maker.counts))}")
    write_jsonl(args.output, (pair for part in ([first], made) for pair in part))
    with printing():
        if args.json:
            print(json.dumps({"output": args.output} | maker.counts.to_dict(), ensure_ascii=False))
        else:
            print(
                f"{args.output}: {counted(maker.counts.pairs, 'pair')}, "
                f"mean margin {maker.counts.mean_margin:.2f} logits"
            )
            print(*_account(maker.counts), f"next: policy dpo {args.output}", sep="\n")


def _account(counts: "PairCounts") -> list[str]:
    """What became of requests and responses, in a line each."""
    dropped = sum(counts.dropped.values())
    reasons = ", ".join(f"{rule} {number}" for rule, number in counts.dropped.most_common())
    left_out = {name: getattr(counts, name) for name in ("empty", "truncated", "unreadable", "duplicates")}
    others = ", ".join(f"{number} {name}" for name, number in left_out.items() if number)
    return [
        f"users with a prompt: {counts.requests}, {dropped} without a pair" + (f" ({reasons})" if reasons else ""),
        f"responses: {counts.responses}" + (f", left out: {others}" if others else ""),
    ]
