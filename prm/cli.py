"""The `prm` command: its arguments. `prm.commands` does the work."""

import logging
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from prm import commands
from prm.config import BackboneConfig, FeedbackConfig, TrainConfig
from prm.output import errors_in_one_line
from prm.reproduce import EXPERIMENTS
from prm.settings import Parser, add_feedback_like_a_runs, build_train_parser, parsed_config


def build_describe_parser() -> ArgumentParser:
    """The parser of `prm data describe`."""
    parser = Parser(description="Who judged what in a feedback log, do they differ, and is it enough to learn from?")
    parser.add_argument("path", type=str, help="feedback log: file, folder or hub id of a data set")
    parser.add_class_arguments(FeedbackConfig, "data", skip={"path"}, help="how the log becomes comparisons")
    usual = BackboneConfig()
    parser.add_argument("--backbone", type=str, default=usual.name, help="whose tokenizer counts tokens, or 'none'")
    parser.add_argument("--max-length", type=int, default=usual.max_length, help="most tokens per sequence")
    parser.add_argument("--output", type=str | None, help="folder for describe.json and the page index.html")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _add_labelled(parser: Parser) -> None:
    """What `evaluate` and `audit` share: a run, labelled feedback, and what to compare the run with."""
    parser.add_argument("run", type=str, help="run folder that 'prm train' made")
    parser.add_argument(
        "log",
        type=str,
        nargs="?",
        help="labelled feedback, read as the run's own log was but for the --data flags that are given; the run's "
        "test.jsonl if left out",
    )
    add_feedback_like_a_runs(parser)
    parser.add_argument("--against", type=str | None, help="run folder of the uniform model to compare with")
    parser.add_argument("--backbone", type=str | None, help="where the backbone lies now, if it was moved")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def build_parser() -> ArgumentParser:
    """The parser of the whole command."""
    parser = Parser(prog="prm", description="Personalised reward models: learn who likes what.")
    subcommands = parser.add_subcommands(required=True)

    subcommands.add_subcommand("train", build_train_parser(), help="train a model from a feedback log")

    evaluate = Parser(description="Accuracy and likelihood on labelled comparisons, with controls.")
    _add_labelled(evaluate)
    evaluate.add_argument(
        "--by", type=str, nargs="+", default=[], help="metadata fields to show value by value; or judgements"
    )
    evaluate.add_argument(
        "--drawn", type=Literal["people", "prompts"], default="people", help="what the intervals are drawn over"
    )
    evaluate.add_argument(
        "--groups", type=str | None, help="metadata field that stays the same for each person: compares groups by it"
    )
    subcommands.add_subcommand("evaluate", evaluate, help="measure a model on held-out comparisons")

    audit = Parser(description="What personalisation costs and whom, against the tuned uniform model.")
    _add_labelled(audit)
    audit.add_argument("--words", type=str | None, help="file of flagged words or phrases, one a line")
    subcommands.add_subcommand("audit", audit, help="see what personalisation costs, and whom")

    score = Parser(
        description="Reward answers for a person. Either flags for one prompt, or a JSON Lines file with "
        "prompt, response (a text) or responses (a list), user_id and user_text."
    )
    score.add_argument("run", type=str, help="run folder that 'prm train' made")
    score.add_argument("--prompt", type=str | None, help="the prompt")
    score.add_argument("--response", type=str, nargs="+", default=[], help="one or more answers to it")
    score.add_argument("--user", type=str | None, help="user id; the unknown user if left out")
    score.add_argument("--user-text", type=str, default="", help="what the person says about themselves")
    score.add_argument("--input", type=str | None, help="JSON Lines file of requests")
    score.add_argument("--output", type=str | None, help="JSON Lines file to write; the screen if left out")
    score.add_argument("--backbone", type=str | None, help="where the backbone lies now, if it was moved")
    score.add_argument("--device", type=str | None, help="cpu, cuda, ...; chosen if left out")
    score.add_argument("--json", action="store_true", help="print JSON Lines")
    subcommands.add_subcommand("score", score, help="score answers for a person")

    adapt = Parser(
        description="Take new people, and further judgements of known ones, into a run: seconds for linear heads, a "
        "minute or two for soft prompts. Nothing shared is trained, and nobody else's scores change."
    )
    adapt.add_argument("run", type=str, help="run folder that 'prm train' made")
    adapt.add_argument(
        "log", type=str, help="their feedback, read as the run's own log was but for the --data flags that are given"
    )
    add_feedback_like_a_runs(adapt)
    adapt.add_argument("--output", type=str | None, help="folder for the changed run; the run itself if left out")
    adapt.add_argument(
        "--anew", action="store_true", help="the log holds all that these people judged: forget the rest"
    )
    adapt.add_argument("--backbone", type=str | None, help="where the backbone lies now, if it was moved")
    subcommands.add_subcommand("adapt", adapt, help="learn new people in seconds")

    newcomers = Parser(
        description="Fit people whom a run does not know to their first judgements, and see from how many it pays. The "
        "run stays as it is."
    )
    _add_labelled(newcomers)
    newcomers.add_argument(
        "--after", type=int, nargs="+", default=[0, 1, 2, 5, 10, 20, 50], help="numbers of judgements to learn from"
    )
    newcomers.add_argument(
        "--split",
        type=Literal["prompt", "pair", "conversation", "response", "time"],
        default="prompt",
        help="what the held-out half of a person's comparisons shares nothing of with the other",
    )
    newcomers.add_argument("--seed", type=int, default=0, help="of the halves and of the order")
    subcommands.add_subcommand("newcomers", newcomers, help="see from how many judgements it pays")

    pool = Parser(description="Evaluated runs taken together: gains over the tuned uniform models, over all people.")
    pool.add_argument("runs", type=str, nargs="+", help="run folders that 'prm evaluate' has measured")
    pool.add_argument("--data", type=str, default="test", help="name, without ending, of the log they were measured on")
    pool.add_argument("--more_than", type=int | None, help="only people with more comparisons to learn from than that")
    pool.add_argument("--json", action="store_true", help="print JSON")
    subcommands.add_subcommand("pool", pool, help="take the evaluations of several runs together")

    forget = Parser(description="Remove a person's own numbers and rows from a run folder.")
    forget.add_argument("run", type=str, help="run folder that 'prm train' made")
    forget.add_argument("user", type=str, help="user id")
    subcommands.add_subcommand("forget", forget, help="remove a person from a model")

    reproduce = Parser(
        description="Train and evaluate the rows of one of the paper's tables or figures, and write it beside the "
        "paper's figures. What was run before is kept; a killed command goes on where it stopped."
    )
    names = Literal[tuple(EXPERIMENTS)]  # type: ignore[valid-type]
    reproduce.add_argument("name", type=names, help="table, figure or question")
    reproduce.add_argument(
        "--scale", type=Literal["laptop", "paper"], default="laptop", help="the small backbone and data, or the paper's"
    )
    reproduce.add_argument("--configs", type=str, default="configs/paper", help="folder of the experiments' YAML files")
    reproduce.add_argument("--output_dir", type=str, default="runs/reproduce", help="folder of tables and rows")
    subcommands.add_subcommand("reproduce", reproduce, help="run an experiment of the paper")

    data = Parser(description="Look at feedback logs.")
    subcommands.add_subcommand("data", data, help="look at a feedback log before training")  # its own come after it
    data.add_subcommands(required=True).add_subcommand(
        "describe", build_describe_parser(), help="what a log holds, and whether it is enough"
    )
    return parser


COMMANDS: dict[str, Callable[[Any], None]] = {
    "evaluate": commands.evaluate_command,
    "audit": commands.audit_command,
    "score": commands.score_command,
    "adapt": commands.adapt_command,
    "newcomers": commands.newcomers_command,
    "pool": commands.pool_command,
    "forget": commands.forget_command,
    "reproduce": commands.reproduce_command,
    "data": lambda args: commands.describe_command(args.describe),
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of `prm`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        if len(arguments) > 1 and not arguments[1].startswith("-"):
            arguments.insert(1, "--config")  # prm train CONFIG
        # a field of a dataclass cannot be called `from`
        arguments = [re.sub(r"^--from(?=$|=)", "--start_from", argument) for argument in arguments]
    run_command(build_parser(), arguments, _dispatch)


def run_command(
    parser: ArgumentParser, arguments: list[str], dispatch: Callable[[ArgumentParser, Namespace], None]
) -> None:
    """Parse and run, as `prm.output` has it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # not the user's to mend
    for chatty in ("httpx", "httpx2", "datasets", "transformers", "jsonargparse"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with errors_in_one_line():
        dispatch(parser, parser.parse_args(arguments))


def _dispatch(parser: ArgumentParser, args: Namespace) -> None:
    chosen = args[args.subcommand]
    if args.subcommand == "train":
        commands.train_command(parsed_config(TrainConfig, build_train_parser(), chosen))
    else:
        COMMANDS[args.subcommand](chosen)


if __name__ == "__main__":
    main()
