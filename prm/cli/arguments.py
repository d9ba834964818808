"""The arguments and the entry point of the `prm` command. `prm.cli.commands` runs the subcommands."""

import logging
import os
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Annotated, Literal, get_args

from prm.checkpoint.exports import Format
from prm.checks import Count, Natural, Range, built
from prm.cli import commands, env_and_cache
from prm.cli.export import export_command
from prm.cli.output import errors_in_one_line, log_to_stderr
from prm.cli.parsing import Parser, typed
from prm.config import BackboneConfig, Device, FeedbackConfig, SplitConfig, TrainConfig
from prm.evaluation.compare.config import CompareModelsConfig

_BACKBONE_HELP = "folder of the backbone, if it was moved since training"


def add_run(parser: Parser, kind: type[SplitConfig]) -> None:
    """Add the arguments of a run that has settings: a YAML or a log, and every key as a flag."""
    parser.add_config(kind)
    parser.add_settings(kind, skip=kind.left_out)


def _add_describe(parser: Parser) -> None:
    parser.add_argument("path", help="feedback log: file, folder or hub id of a data set")
    parser.add_settings(FeedbackConfig, "data", skip={"data.path"})
    defaults, long_enough = BackboneConfig(), typed(Annotated[int, Range(8)])
    parser.add_argument("--backbone", default=defaults.name, help="backbone whose tokenizer counts tokens, or 'none'")
    parser.add_argument(
        "--max_length", type=long_enough, default=defaults.max_length, help="maximum tokens per sequence"
    )
    parser.add_argument("--output", help="folder for describe.json and the page index.html")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_labelled(parser: Parser) -> None:
    """Add the flags of `evaluate`, `audit` and `cold_start`: a run, labelled feedback, and a uniform model."""
    parser.add_argument("run", help="run folder that 'prm train' made")
    parser.add_argument(
        "log",
        nargs="?",
        help="labelled feedback, read with the data settings of the run and the --data flags; by default the run's "
        "test.jsonl",
    )
    parser.add_settings(FeedbackConfig, "data", skip={"data.path"})
    parser.add_argument("--against", help="run folder of the uniform model to compare with")
    parser.add_argument("--backbone", help=_BACKBONE_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_page(parser: Parser) -> None:
    page = "also write the result to this self-contained HTML file, to read or to send on"
    parser.add_argument("--page", metavar="FILE.html", help=page)


def _add_evaluate(parser: Parser) -> None:
    _add_labelled(parser)
    parser.add_argument(
        "--by",
        action="extend",
        nargs="+",
        default=[],
        help="metadata fields to show results by; 'train_comparisons': number of training comparisons of the user",
    )
    drawn = "what the bootstrap of the intervals draws"
    parser.add_argument("--interval_over", choices=["people", "prompts"], default="people", help=drawn)
    parser.add_argument("--groups", help="metadata field to compare groups of users by; the same for all of a user")
    _add_page(parser)


def _add_audit(parser: Parser) -> None:
    _add_labelled(parser)
    parser.add_argument("--words", help="file of flagged words or phrases, one per line")


def _add_train(parser: Parser) -> None:
    add_run(parser, TrainConfig)
    _add_reading_engine(parser)


def _add_compare(parser: Parser) -> None:
    add_run(parser, CompareModelsConfig)
    _add_reading_engine(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_score(parser: Parser) -> None:
    parser.add_argument("run", help="run folder that 'prm train' made")
    parser.add_argument("--prompt", help="the prompt")
    parser.add_argument("--response", action="extend", nargs="+", default=[], help="one or more responses to it")
    parser.add_argument("--user", help="user id; the generic user by default")
    parser.add_argument("--user_text", default="", help="the user's text about themselves")
    parser.add_argument(
        "--input", help="JSON Lines file of requests; with --engine also CSV and Parquet, and 'a/*.csv'"
    )
    output = "JSON Lines file to write; standard output by default; with --engine a folder of Parquet shards"
    parser.add_argument("--output", help=output)
    parser.add_argument("--backbone", help=_BACKBONE_HELP)
    parser.add_argument("--device", type=typed(Device), help="cpu, cuda, ...; chosen automatically by default")
    parser.add_argument("--json", action="store_true", help="print JSON Lines")
    add_engine(parser)


def _add_reading_engine(parser: Parser) -> None:
    """Add the flags that say where a frozen backbone reads texts."""
    engine = (
        "where texts are read for linear heads: 'local' in this process, 'ray' by workers on the GPUs or CPUs of a "
    )
    _add_workers(parser, f"{engine}cluster", "local")
    device = "of the workers of --engine ray: cpu, cuda, ...; chosen automatically by default"
    parser.add_argument("--device", type=typed(Device), help=device)


def add_engine(parser: Parser) -> None:
    """Add the flags that score files of any size."""
    _add_workers(parser, "score files of any size, and go on after a kill: 'local' on this machine, 'ray' on a cluster")
    bad = "with --engine: stop at the first bad row, or skip bad rows, which get no reward but an 'error'"
    parser.add_argument("--on_bad_row", choices=["stop", "skip"], default="stop", help=f"{bad} (default: stop)")


def _add_workers(parser: Parser, engine: str, default: str | None = None) -> None:
    parser.add_argument("--engine", choices=["local", "ray"], default=default, help=engine)
    workers = "models that read at once with --engine ray; one for each GPU, or else each CPU, by default"
    parser.add_argument("--workers", type=typed(Count), help=workers)


def _add_adapt(parser: Parser) -> None:
    parser.add_argument("run", help="run folder that 'prm train' made")
    log = "feedback of these users, read with the data settings of the run and the --data flags"
    parser.add_argument("log", help=log)
    parser.add_settings(FeedbackConfig, "data", skip={"data.path"})
    parser.add_argument("--output", help="folder for the changed run; the run itself by default")
    refit = "the log has all comparisons of these users: fit them again to this log alone"
    parser.add_argument("--refit", action="store_true", help=refit)
    parser.add_argument("--backbone", help=_BACKBONE_HELP)


def _add_cold_start(parser: Parser) -> None:
    _add_labelled(parser)
    defaults = [0, 1, 2, 5, 10, 20, 50]
    after = "numbers of training comparisons per new user"
    parser.add_argument("--after", type=typed(Natural), nargs="+", default=defaults, help=after)
    split = "what the two halves of a user's comparisons must not share"
    keys = ["prompt", "pair", "conversation", "response", "time"]
    parser.add_argument("--holdout_by", choices=keys, default="prompt", help=split)
    parser.add_argument("--seed", type=typed(Natural), default=0, help="random seed of the halves and of the order")
    _add_page(parser)


def _add_pool(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", help="run folders that 'prm evaluate' has evaluated")
    parser.add_argument(
        "--data", default="test", help="file name, without extension, of the log they were evaluated on"
    )
    more = "only users with more training comparisons than this"
    parser.add_argument("--more_than", type=typed(Natural), help=more)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_forget(parser: Parser) -> None:
    parser.add_argument("run", help="run folder that 'prm train' made")
    parser.add_argument("user", help="user id")


def _add_export(parser: Parser) -> None:
    parser.add_argument("run", help="run folder that 'prm train' made, with linear heads")
    formats = list(get_args(Format))
    parser.add_argument("--format", choices=formats, default=formats[0], help="what the folder is for")
    parser.add_argument("--output", required=True, help="folder of the export")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--backbone", help=_BACKBONE_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_reproduce(parser: Parser) -> None:
    from prm.experiments import EXPERIMENTS  # imports numpy, which other commands parse their flags without

    parser.add_argument("name", choices=list(EXPERIMENTS), help="table, figure or other experiment")
    scale = "a small backbone and data set, or the paper's"
    parser.add_argument("--scale", choices=["laptop", "paper"], default="laptop", help=scale)
    parser.add_argument("--configs", default="configs/paper", help="folder of the experiments' YAML files")
    parser.add_argument("--output_dir", default="runs/reproduce", help="folder for tables and rows")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_data(parser: Parser) -> None:
    inner = parser.add_subparsers(dest="what", required=True)
    summary = (
        "Describe a feedback log: its users and comparisons, whether users differ, and whether it is large enough."
    )
    _add_describe(inner.add_parser("describe", help="describe a log, and whether it is enough", description=summary))


def _add_env(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_cache(parser: Parser) -> None:
    from prm.features.cache_folder import KINDS

    what = "; ".join(f"{kind}: {text}" for kind, text in KINDS.items())
    parser.add_argument("action", nargs="?", choices=["list", "clear"], default="list", help="list, or remove")
    kind = typed(Literal[tuple(KINDS)])  # not `choices`: none is a choice, too
    parser.add_argument("kinds", nargs="*", type=kind, metavar="KIND", help=f"these kinds only; {what}")
    parser.add_argument("--json", action="store_true", help="print JSON")


# name: (line in `prm --help`, description in `prm NAME --help`, its flags, its function)
_COMMANDS: dict[str, tuple[str, str, Callable[[Parser], None], Callable[[Namespace], None]]] = {
    "train": (
        "train a model from a feedback log",
        "Train a personalised reward model: prm train LOG, or prm train CONFIG.yaml, each with [--key value ...], or "
        "continue a finished run with new comparisons: prm train NEW --from RUN --output_dir NEXT. "
        "Every key of the YAML is also a flag; flags override the YAML.",
        _add_train,
        lambda args: commands.train_command(built(TrainConfig, args.settings), args),
    ),
    "evaluate": (
        "evaluate a model on held-out comparisons",
        "Accuracy and log loss on labelled comparisons, with baselines and intervals.",
        _add_evaluate,
        commands.evaluate_command,
    ),
    "compare": (
        "find out which user model a log wants",
        "Evaluate user models side by side on one log: each part of it is held out once, and every model is chosen and "
        "fitted on the rest. A killed command resumes where it stopped.",
        _add_compare,
        lambda args: commands.compare_command(built(CompareModelsConfig, args.settings), args),
    ),
    "audit": (
        "find users that personalisation harms, and biases that it adds",
        "Gains and losses of each user, calibration, biases and sycophancy, against the tuned uniform model.",
        _add_audit,
        commands.audit_command,
    ),
    "score": (
        "score responses for a user",
        "Score responses for a user: one prompt by flags, or a JSON Lines file with prompt, response (a "
        "text) or responses (a list), user_id and user_text.",
        _add_score,
        commands.score_command,
    ),
    "adapt": (
        "add new users to a finished run",
        "Fit new users, and known users with further comparisons, in a finished run. Once the model is loaded, that "
        "takes seconds for linear heads, a minute or two for soft prompts. Shared parameters stay fixed, and no other "
        "user's scores change.",
        _add_adapt,
        commands.adapt_command,
    ),
    "cold_start": (
        "find out how many comparisons a new user needs",
        "Fit users that a run does not know to their first k comparisons, for several k, and evaluate each "
        "fit. The run is not changed.",
        _add_cold_start,
        commands.cold_start_command,
    ),
    "pool": (
        "combine the evaluations of several runs",
        "Gains over the tuned uniform models, over all users of several evaluated runs.",
        _add_pool,
        commands.pool_command,
    ),
    "forget": (
        "remove a user from a model",
        "Remove a user's parameters and rows from a run folder.",
        _add_forget,
        commands.forget_command,
    ),
    "export": (
        "export what the heads read, for other servers",
        "Write the frozen backbone, cut to the layers that the run reads, as a sentence-transformers model. vLLM or "
        "text-embeddings-inference then read the texts, and Scorer.score_features scores the vectors.",
        _add_export,
        export_command,
    ),
    "reproduce": (
        "run an experiment of the paper",
        "Train and evaluate the rows of one of the paper's tables or figures, and write the results with the "
        "paper's. Finished rows are kept; a killed command resumes where it stopped.",
        _add_reproduce,
        commands.reproduce_command,
    ),
    "data": (
        "describe a feedback log before training",
        "Describe feedback logs.",
        _add_data,
        commands.describe_command,
    ),
    "cache": (
        "list or clear the cache folder",
        "List what is in the cache folder ($PRM_CACHE), or remove it: 'prm cache clear' removes all that this library "
        "wrote there, without a question; all of it can be computed again.",
        _add_cache,
        env_and_cache.cache_command,
    ),
    "env": (
        "print versions, the machine and the cache folder",
        "Print what a report of a fault should hold: versions, platform, device, threads, cache folder and commit.",
        _add_env,
        env_and_cache.env_command,
    ),
}


def build_parser(only: str | None = None) -> Parser:
    """The parser of the complete command.

    Args:
        only: add the flags of this subcommand alone, which saves time.
    """
    parser = Parser(
        prog="prm",
        description="Personalised reward models: train on a feedback log, score responses for each user.",
    )
    parser.add_package_flags(build_parser)
    subcommands = parser.add_subparsers(dest="subcommand", required=True)
    for name, (summary, description, add_flags, _) in _COMMANDS.items():
        subparser = subcommands.add_parser(name, help=summary, description=description)
        if only in (None, name):
            add_flags(subparser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Entry point of `prm`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        # a field of a dataclass cannot be called `from`
        arguments = [re.sub(r"^--from(?=$|=)", "--start_from", argument) for argument in arguments]
    subcommand = next((argument for argument in arguments if not argument.startswith("-")), "")
    run_command(build_parser(subcommand), arguments, lambda args: _COMMANDS[args.subcommand][3](args))


def run_command(parser: Parser, arguments: list[str], do: Callable[[Namespace], None]) -> None:
    """Parse the arguments and run the command, with logs and errors as in `prm.cli.output`."""
    log_to_stderr()
    for chatty in ("accelerate", "httpx", "httpx2", "datasets", "transformers"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it sets its level when it is imported
    with errors_in_one_line():
        do(parser.parse_args(arguments, Namespace(command=shlex.join([parser.prog, *arguments]))))
