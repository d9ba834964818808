"""The `prm` command: its arguments. `prm.cli.commands` does the work."""

import logging
import re
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from typing import Annotated, Any

from prm.checks import Natural, Range, built
from prm.cli import commands
from prm.cli.output import errors_in_one_line, log_to_stderr
from prm.cli.parsing import Parser, typed
from prm.config import BackboneConfig, FeedbackConfig, TrainConfig
from prm.experiments import EXPERIMENTS

_MOVED = "where the backbone lies now, if it was moved"


def add_run(parser: Parser, kind: type[Any]) -> None:
    """The flags of a training run: a YAML, and every key as a flag."""
    parser.usage = f"{parser.prog} [CONFIG.yaml] [--KEY VALUE ...]"
    parser.add_config(kind)
    parser.add_settings(kind, skip=kind.left_out)


def _add_describe(parser: Parser) -> None:
    parser.add_argument("path", help="feedback log: file, folder or hub id of a data set")
    parser.add_settings(FeedbackConfig, "data", skip={"data.path"})
    usual, long_enough = BackboneConfig(), typed(Annotated[int, Range(8)])
    parser.add_argument("--backbone", default=usual.name, help="whose tokenizer counts tokens, or 'none'")
    parser.add_argument("--max_length", type=long_enough, default=usual.max_length, help="most tokens per sequence")
    parser.add_argument("--output", help="folder for describe.json and the page index.html")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_labelled(parser: Parser) -> None:
    """What `evaluate` and `audit` share: a run, labelled feedback, and what to compare the run with."""
    parser.add_argument("run", help="run folder that 'prm train' made")
    parser.add_argument(
        "log",
        nargs="?",
        help="labelled feedback, read as the run's own log was but for the --data flags that are given; the run's "
        "test.jsonl if left out",
    )
    parser.add_settings(FeedbackConfig, "data", skip={"data.path"})
    parser.add_argument("--against", help="run folder of the uniform model to compare with")
    parser.add_argument("--backbone", help=_MOVED)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_evaluate(parser: Parser) -> None:
    _add_labelled(parser)
    parser.add_argument(
        "--by", action="extend", nargs="+", default=[], help="metadata fields to show value by value; or judgements"
    )
    drawn = "what the intervals are drawn over"
    parser.add_argument("--interval_over", choices=["people", "prompts"], default="people", help=drawn)
    parser.add_argument("--groups", help="metadata field that stays the same for each person: compares groups by it")


def _add_audit(parser: Parser) -> None:
    _add_labelled(parser)
    parser.add_argument("--words", help="file of flagged words or phrases, one a line")


def _add_score(parser: Parser) -> None:
    parser.add_argument("run", help="run folder that 'prm train' made")
    parser.add_argument("--prompt", help="the prompt")
    parser.add_argument("--response", action="extend", nargs="+", default=[], help="one or more answers to it")
    parser.add_argument("--user", help="user id; the unknown user if left out")
    parser.add_argument("--user_text", default="", help="what the person says about themselves")
    parser.add_argument("--input", help="JSON Lines file of requests")
    parser.add_argument("--output", help="JSON Lines file to write; the screen if left out")
    parser.add_argument("--backbone", help=_MOVED)
    parser.add_argument("--device", help="cpu, cuda, ...; chosen if left out")
    parser.add_argument("--json", action="store_true", help="print JSON Lines")


def _add_adapt(parser: Parser) -> None:
    parser.add_argument("run", help="run folder that 'prm train' made")
    log = "their feedback, read as the run's own log was but for the --data flags that are given"
    parser.add_argument("log", help=log)
    parser.add_settings(FeedbackConfig, "data", skip={"data.path"})
    parser.add_argument("--output", help="folder for the changed run; the run itself if left out")
    whole = "the log holds all that these people judged: forget the rest"
    parser.add_argument("--refit", action="store_true", help=whole)
    parser.add_argument("--backbone", help=_MOVED)


def _add_cold_start(parser: Parser) -> None:
    _add_labelled(parser)
    usual = [0, 1, 2, 5, 10, 20, 50]
    after = "numbers of judgements to learn from"
    parser.add_argument("--after", type=typed(Natural), nargs="+", default=usual, help=after)
    split = "what the held-out half of a person's comparisons shares nothing of with the other"
    keys = ["prompt", "pair", "conversation", "response", "time"]
    parser.add_argument("--holdout_by", choices=keys, default="prompt", help=split)
    parser.add_argument("--seed", type=typed(Natural), default=0, help="of the halves and of the order")


def _add_pool(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", help="run folders that 'prm evaluate' has measured")
    parser.add_argument("--data", default="test", help="name, without ending, of the log they were measured on")
    more = "only people with more comparisons to learn from than that"
    parser.add_argument("--more_than", type=typed(Natural), help=more)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_forget(parser: Parser) -> None:
    parser.add_argument("run", help="run folder that 'prm train' made")
    parser.add_argument("user", help="user id")


def _add_reproduce(parser: Parser) -> None:
    parser.add_argument("name", choices=list(EXPERIMENTS), help="table, figure or question")
    scale = "the small backbone and data, or the paper's"
    parser.add_argument("--scale", choices=["laptop", "paper"], default="laptop", help=scale)
    parser.add_argument("--configs", default="configs/paper", help="folder of the experiments' YAML files")
    parser.add_argument("--output_dir", default="runs/reproduce", help="folder of tables and rows")


def _add_data(parser: Parser) -> None:
    inner = parser.add_subparsers(dest="what", required=True)
    what = "Who judged what in a feedback log, do they differ, and is it enough to learn from?"
    _add_describe(inner.add_parser("describe", help="what a log holds, and whether it is enough", description=what))


# name: (what `prm --help` says, what `prm NAME --help` says, its flags, what it does)
_COMMANDS: dict[str, tuple[str, str, Callable[[Parser], None], Callable[[Any], None]]] = {
    "train": (
        "train a model from a feedback log",
        "Train a personalised reward model: prm train CONFIG.yaml [--key value ...], or go on from a "
        "finished run with new judgements: prm train --from RUN --data.path NEW --output_dir NEXT. "
        "Every key of the YAML is also a flag; flags win.",
        lambda parser: add_run(parser, TrainConfig),
        lambda args: commands.train_command(built(TrainConfig, args.settings)),
    ),
    "evaluate": (
        "measure a model on held-out comparisons",
        "Accuracy and likelihood on labelled comparisons, with controls.",
        _add_evaluate,
        commands.evaluate_command,
    ),
    "audit": (
        "see what personalisation costs, and whom",
        "What personalisation costs and whom, against the tuned uniform model.",
        _add_audit,
        commands.audit_command,
    ),
    "score": (
        "score answers for a person",
        "Reward answers for a person. Either flags for one prompt, or a JSON Lines file with "
        "prompt, response (a text) or responses (a list), user_id and user_text.",
        _add_score,
        commands.score_command,
    ),
    "adapt": (
        "learn new people in seconds",
        "Take new people, and further judgements of known ones, into a run: seconds for linear heads, a "
        "minute or two for soft prompts. Nothing shared is trained, and nobody else's scores change.",
        _add_adapt,
        commands.adapt_command,
    ),
    "cold_start": (
        "see from how many judgements it pays",
        "Fit people whom a run does not know to their first judgements, and see from how many it pays. The "
        "run stays as it is.",
        _add_cold_start,
        commands.cold_start_command,
    ),
    "pool": (
        "take the evaluations of several runs together",
        "Evaluated runs taken together: gains over the tuned uniform models, over all people.",
        _add_pool,
        commands.pool_command,
    ),
    "forget": (
        "remove a person from a model",
        "Remove a person's own numbers and rows from a run folder.",
        _add_forget,
        commands.forget_command,
    ),
    "reproduce": (
        "run an experiment of the paper",
        "Train and evaluate the rows of one of the paper's tables or figures, and write it beside the "
        "paper's figures. What was run before is kept; a killed command goes on where it stopped.",
        _add_reproduce,
        commands.reproduce_command,
    ),
    "data": ("look at a feedback log before training", "Look at feedback logs.", _add_data, commands.describe_command),
}


def build_parser() -> Parser:
    """The parser of the whole command."""
    parser = Parser(prog="prm", description="Personalised reward models: learn who likes what.")
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    for name, (what, description, add_flags, _) in _COMMANDS.items():
        add_flags(subcommands.add_parser(name, help=what, description=description))
    return parser


def main(argv: list[str] | None = None) -> None:
    """Entry point of `prm`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        arguments = ["train", *config_first(arguments[1:])]
        # a field of a dataclass cannot be called `from`
        arguments = [re.sub(r"^--from(?=$|=)", "--start_from", argument) for argument in arguments]
    run_command(build_parser(), arguments, lambda args: _COMMANDS[args.subcommand][3](args))


def config_first(arguments: list[str]) -> list[str]:
    """The arguments of a training command, where a YAML may stand first without a flag."""
    return ["--config", *arguments] if arguments and not arguments[0].startswith("-") else arguments


def run_command(parser: Parser, arguments: list[str], do: Callable[[Namespace], None]) -> None:
    """Parse and run, as `prm.cli.output` has it."""
    log_to_stderr()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # not the user's to mend
    for chatty in ("httpx", "httpx2", "datasets", "transformers"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with errors_in_one_line():
        do(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
