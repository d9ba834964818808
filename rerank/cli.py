"""The `rerank` command: best-of-N responses for a user."""

import json
import sys
from argparse import Action, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence

from prm.checks import built
from prm.cli.arguments import add_engine, run_command
from prm.cli.commands import refuse_flags_of_engines
from prm.cli.parsing import Parser
from prm.errors import DataError, PrmError, counted
from prm.io.endpoint import EndpointError, is_url
from prm.io.tables import write_jsonl
from prm.scale.ray_engine import require_ray
from prm.scoring.user_warnings import warn_about_users
from rerank.curves.commands import build_curve_parser, curve_command
from rerank.pairs.commands import build_pairs_parser, pairs_command
from rerank.ranking.requests import SAMPLES, add_request_flags, read_requests, refuse_missing_models
from rerank.ranking.strategy_flag import Strategy, help_text
from rerank.sampling.config import Sampling
from rerank.sampling.generator import Request, require_responses
from rerank.service.command import build_serve_parser, serve_command
from rerank.service.keys_command import build_keys_parser, keys_command
from rerank.service.report.command import build_report_parser, report_command

# name: (its parser, its function)
_SUBCOMMANDS: dict[str, tuple[Callable[[], Parser], Callable[[Namespace], None]]] = {
    "curve": (build_curve_parser, curve_command),
    "pairs": (build_pairs_parser, pairs_command),
    "serve": (build_serve_parser, serve_command),
    "keys": (build_keys_parser, keys_command),
    "report": (build_report_parser, report_command),
}
_NAMES = " ".join(_SUBCOMMANDS)
_RUN_OR_SUBCOMMAND = {  # what completes the first argument, as shtab takes it: functions by shell
    "bash": "_rerank_run_or_subcommand",
    "zsh": "_rerank_run_or_subcommand",
    "fish": f"(string split ' ' '{_NAMES}'; __fish_complete_path (commandline -ct))",
    "preamble": {
        "bash": f"""_rerank_run_or_subcommand() {{ compgen -W '{_NAMES}' -- "$1"; _shtab_compgen_files "$1"; }}""",
        "zsh": f"_rerank_run_or_subcommand() {{ compadd {_NAMES}; _files }}",
    },
}


def build_parser() -> Parser:
    """Build the command's parser."""
    parser = Parser(
        prog="rerank",
        description="Sample N responses to a prompt, or read them from a file, and rank them for a user. "
        "Requests come from flags, or from a JSON Lines file with prompt, user_id and, optionally, responses. "
        "'rerank curve' shows how reward and win rate grow with N; 'rerank pairs' writes chosen and rejected "
        "responses for training; 'rerank serve' ranks over HTTP and learns from feedback; 'rerank keys' makes its "
        "API keys, 'rerank report' measures what it brings.",
    )
    parser.add_package_flags(_with_subcommands)
    add_request_flags(parser)
    parser.add_argument("--strategy", default="best", help=f"how candidates are ranked: {help_text()}")
    output = "JSON Lines file to write; the terminal if left out; with --engine a folder of Parquet shards"
    parser.add_argument("--output", help=output)
    parser.add_argument("--json", action="store_true", help="print JSON Lines")
    add_engine(parser)
    return parser


def _with_subcommands() -> Parser:
    """A parser of all arguments, for completion; the first is a run or a subcommand."""
    parser = build_parser()
    first = next(action for action in parser._actions if action.dest == "run")
    first.complete = _RUN_OR_SUBCOMMAND  # type: ignore[attr-defined]
    longest = max((build() for build, _ in _SUBCOMMANDS.values()), key=lambda p: len(_files(p)))
    for action in _files(longest):
        parser._add_action(action)
    for build, _ in _SUBCOMMANDS.values():
        for action in build()._get_optional_actions():
            if not parser._option_string_actions.keys() & set(action.option_strings):
                parser._add_action(action)
    return parser


def _files(parser: Parser) -> list[Action]:
    """Positional arguments that are no choice among words."""
    return [action for action in parser._get_positional_actions() if action.choices is None]


def rank_requests(
    args: Namespace, requests: Sequence[Request], sampling: Sampling, strategy: Strategy
) -> Iterator[dict[str, object]]:
    """Yield each request with `ranking`: candidates, best first, each with its text and reward."""
    refuse_missing_models(args, sampling)
    from prm.models.backbones import device_named
    from prm.scoring.scorer import Scorer  # slow to import: wrong arguments are refused before
    from rerank.ranking.candidates import LocalGenerator
    from rerank.ranking.open_generator import open_named
    from rerank.ranking.rank_candidates import Ranker

    scorer = Scorer.from_pretrained(args.run, args.backbone, device_named(args.device))
    warn_about_users(scorer, [request.user for request in requests])
    to_sample, n = [request for request in requests if request.responses is None], args.n or SAMPLES
    to_each = f" to each of {len(to_sample)} prompts" if len(to_sample) > 1 else ""
    what = f"{counted(n, 'response')} of up to {sampling.max_new_tokens} tokens{to_each}" if to_sample else ""
    needs_generator = to_sample or strategy.name == "regularised"
    generator = open_named(args, scorer, sampling, what) if needs_generator else None
    sampler = generator.sampler if isinstance(generator, LocalGenerator) else None
    ranker = Ranker(scorer, strategy, sampling.seed, sampler)
    sampled = generator.sample(to_sample, n) if generator is not None else iter(())
    for request in requests:
        try:
            responses = require_responses(next(sampled)) if request.responses is None else ()
            yield ranker.answer(request, responses)
        except EndpointError:  # not this request's fault
            raise
        except PrmError as error:
            raise DataError(f"{request.location}: {error}") from None


def rerank_command(args: Namespace) -> None:
    """Rank each request's candidates, and print or write them."""
    sampling, strategy = built(Sampling, args.settings.get("sampling", {}), "sampling"), Strategy.parse(args.strategy)
    if strategy.name == "regularised" and is_url(args.generator or ""):
        raise PrmError(f"--strategy {args.strategy} needs the generator's log-probabilities: an endpoint gives none")
    if args.engine is not None:
        _rank_files(args, strategy, sampling)
        return
    refuse_flags_of_engines(args)
    rows = rank_requests(args, read_requests(args), sampling, strategy)
    if args.output:
        write_jsonl(args.output, rows)
    elif args.json or args.input:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False), flush=True)
    else:
        for row in rows:
            print_ranking(row)


def _rank_files(args: Namespace, strategy: Strategy, sampling: Sampling) -> None:
    """Rank files of any size into a folder of shards."""
    if args.input is None or args.output is None:
        raise PrmError("--engine ranks files into a folder: give --input FILES and --output FOLDER")
    if args.user is not None or args.user_text or args.candidates or args.prompt is not None:
        raise PrmError(
            "--prompt, --user, --user_text and --candidates are of one request: with --input each row has its own"
        )
    if args.n is not None or args.generator:
        raise PrmError("--engine ranks given responses, and samples none: leave out -n and --generator")
    refuse_missing_models(args, sampling)
    if args.engine == "ray":
        require_ray()
    from rerank.ranking.rank_files import rank_files

    rank_files(args, strategy, sampling.seed)


def print_ranking(row: Mapping[str, object]) -> None:
    """Print one request's candidates, best first."""
    from prm.report import show, table

    user, ranking = str(row["user_id"]) if row["known_user"] else "the generic user", row["ranking"]
    assert isinstance(ranking, list)
    if row["user_id"] and not row["known_user"]:
        user += f" ({row['user_id']!r} is not in the model)"
    columns = [name for name in ranking[0] if name not in ("text", "ended")]
    ranked = [[*(f"{r[name]:+.3f}" for name in columns), r["text"]] for r in ranking]
    head = [*(name.replace("_", " ") for name in columns), "response"]
    cut = sum(r.get("ended") is False for r in ranking)
    notes = [f"{cut} of {len(ranked)} responses were cut at their maximum length"] if cut else []
    show(table(f"{counted(len(ranked), 'response')} ranked for {user}", head, ranked, numeric=len(head)), *notes)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `rerank`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next(iter(arguments), "")
    if name in _SUBCOMMANDS:  # a run folder of that name can be given as ./curve
        build, do = _SUBCOMMANDS[name]
        run_command(build(), arguments[1:], do)
    else:
        run_command(build_parser(), arguments, rerank_command)
