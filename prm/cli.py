"""The `prm` command: data, train, evaluate, score, forget, theory."""

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, Namespace

from prm.comparison import Comparison
from prm.config import BackboneConfig, FeedbackConfig, TldrConfig, TrainConfig
from prm.errors import DataError, PrmError
from prm.files import read_rows, write_json, write_jsonl
from prm.reproduce import EXPERIMENTS
from prm.sources import read_feedback


def train_command(config: TrainConfig) -> None:
    """Train, and say where the run lies."""
    from prm.run import train  # brings in trl, which takes seconds that no other command needs

    run = train(config)
    if int(os.environ.get("RANK", "0")) > 0:
        return  # one process speaks
    print(f"{run}: done")
    if (run / "test.jsonl").exists():
        print(f"next: prm evaluate {run}")


def evaluate_command(args: Namespace) -> None:
    """Evaluate a run on labelled comparisons, beside its controls; the numbers stay in the run folder."""
    from prm.evaluate import evaluate_run
    from prm.report import print_evaluation

    data, comparisons = _read_labelled(args)
    result = evaluate_run(args.run, comparisons, args.against, args.backbone, args.by, args.drawn, args.groups)
    write_json(Path(args.run) / f"evaluation-{data.stem}.json", {"data": str(data)} | result.to_dict())
    if args.json:
        print(json.dumps(result.to_dict()))
    else:
        print_evaluation(result, f"{args.run} on {data}")


def audit_command(args: Namespace) -> None:
    """What personalisation costs and whom; tables, and a page and the numbers in the run folder."""
    from prm.audit import audit_run
    from prm.audit.flagged import read_phrases
    from prm.report import print_audit, write_audit

    phrases = read_phrases(args.words) if args.words is not None else None
    data, comparisons = _read_labelled(args)
    result = audit_run(args.run, comparisons, phrases, args.against, args.backbone)
    folder, title = Path(args.run) / "audit", f"{args.run} on {data}"
    write_json(Path(args.run) / f"audit-{data.stem}.json", {"data": str(data)} | result.to_dict())
    write_audit(result, folder, title)
    if args.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
    else:
        print_audit(result, title)
        print(f"written to {folder / 'index.html'}")


def _read_labelled(args: Namespace) -> tuple[Path, list[Comparison]]:
    """(file, comparisons) of the log that a command names, or of the run's own held-out part."""
    from prm.checkpoint import read_config

    read_config(Path(args.run))  # says what is wrong with the run before anything is read
    data = Path(args.log or Path(args.run) / "test.jsonl")
    if not args.log and not data.is_file():
        raise PrmError(f"{args.run} holds no test.jsonl: name a file of feedback")
    # the run's own file holds comparisons, whatever they came from
    config = _feedback_config(args.data, str(data)) if args.log else FeedbackConfig(path=str(data))
    return data, read_feedback(config).comparisons


def score_command(args: Namespace) -> None:
    """Score answers of one prompt given by flags, or a file of them."""
    from prm.scorer import Scorer

    if (args.input is None) == (args.prompt is None):
        raise PrmError("give either --prompt with one or more --response, or --input FILE")
    if args.prompt is not None and not args.response:
        raise PrmError("--prompt needs at least one --response")
    requests = [(0, {})] if args.input is None else list(read_rows(args.input))
    if args.input is None:
        given = {"user_id": args.user, "prompt": args.prompt, "responses": args.response, "user_text": args.user_text}
        requests = [(1, given)]
    scorer = Scorer.from_pretrained(args.run, args.backbone, args.device)
    origin = args.input or "the command line"
    rows = list(score_rows(scorer, requests, origin))
    if args.output:
        write_jsonl(args.output, rows)
    elif args.input or args.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        stranger = f"the unknown user ({args.user!r} is not in the model)" if args.user else "the unknown user"
        who = args.user if rows[0]["known_user"] else stranger
        print(f"rewards for {who}, in logits: a difference of 1 means odds of 2.7 to 1")
        for reward, response in zip(rows[0]["rewards"], args.response, strict=True):
            print(f"{reward:9.4f}  {response}")


def score_rows(scorer: Any, requests: Sequence[tuple[int, dict[str, Any]]], origin: str) -> Iterator[dict[str, Any]]:
    """Each request with `rewards` (or `reward`, for one that gives `response`) and `known_user` added.

    All requests are checked and scored together. Raises `DataError` naming file and line of a bad one.
    """
    flat: list[tuple[Any, str, str | None, str]] = []
    for number, row in requests:
        place = f"{origin}, line {number}"
        if "prompt" not in row:
            raise DataError(f"{place}: field 'prompt' is missing")
        responses = row["responses"] if "responses" in row else [row.get("response")]
        if isinstance(row.get("response"), list):
            raise DataError(f"{place}: 'response' is one text; give a list under 'responses'")
        if not isinstance(responses, list) or not responses:
            raise DataError(f"{place}: give 'response' (text) or 'responses' (a list of texts)")
        user, text = row.get("user_id"), row.get("user_text") or ""
        if not isinstance(user, str | None) or not isinstance(text, str):
            raise DataError(f"{place}: 'user_id' and 'user_text' must be text")
        for response in responses:
            try:
                scorer.encoder.encode(*scorer.check(row["prompt"], response), 0, text)
            except PrmError as error:
                raise DataError(f"{place}: {error}") from None
            flat.append((row["prompt"], response, user, text))
    columns = [list(column) for column in zip(*flat, strict=True)]
    rewards = iter(scorer.score_batch(*columns).tolist())
    for _, row in requests:
        n = len(row["responses"]) if "responses" in row else 1
        found = [next(rewards) for _ in range(n)]
        key = {"rewards": found} if "responses" in row else {"reward": found[0]}
        yield row | key | {"known_user": scorer.knows(row.get("user_id"))}


def forget_command(args: Namespace) -> None:
    """Remove a person from a run."""
    from prm.checkpoint import forget_user

    forget_user(args.run, args.user)
    print(f"{args.user} is forgotten in {args.run}; what shared weights learnt from them stays")


def describe_command(args: Namespace) -> None:
    """Describe a feedback log, before anyone trains on it."""
    from prm.describe import describe
    from prm.report import print_description, write_description

    config = _feedback_config(args.data, args.path)
    if args.max_length < 8:
        raise PrmError("--max-length must be at least 8")
    feedback = read_feedback(config)
    encoder = None
    if args.backbone != "none":
        from prm.backbones import load_tokenizer
        from prm.tokens import TextEncoder

        tokenizer = load_tokenizer(args.backbone)
        encoder = TextEncoder(tokenizer, len(tokenizer), user_tokens=1, place="behind", max_length=args.max_length)
    description = describe(feedback, encoder)
    if args.output:
        write_description(description, Path(args.output), args.path)
    if args.json:
        print(json.dumps(description.to_dict(), ensure_ascii=False))
    else:
        print_description(description, args.path)
        if args.output:
            print(f"written to {Path(args.output) / 'index.html'}")


def theory_command(args: Namespace) -> None:
    """Work out the paper's two lemmas on small examples."""
    from prm.report import print_theory, write_theory
    from prm.theory import show_lemmas

    theory = show_lemmas()
    write_theory(theory, Path(args.output))
    print_theory(theory)
    print(f"written to {Path(args.output) / 'index.html'}")


def reproduce_command(args: Namespace) -> None:
    """Run an experiment of the paper row by row; tables and pictures are written anew after each row."""
    from prm.report import print_reproduction, write_reproduction
    from prm.reproduce import judge
    from prm.reproduce.run import run_rows

    experiment, folder, configs = EXPERIMENTS[args.name], Path(args.output_dir), Path(args.configs)
    files = [configs / f"{experiment.config}.yaml"]
    if args.scale == "laptop":
        files.append(configs / "laptop" / files[0].name)

    def configure(row: Any) -> TrainConfig:
        place = {"output_dir": str(folder / "rows" / args.scale / row.name)}
        return read_train_config(*files, settings={**row.settings, **place})

    for results in run_rows(experiment, configure, "prompts" if args.scale == "laptop" else "people"):
        judged = judge(experiment, results)
        write_reproduction(experiment, results, judged, folder / args.name, args.scale)
        if len(results) == len(experiment.rows):
            print_reproduction(experiment, results, judged)
            print(f"written to {folder / args.name / 'index.html'}")


class Parser(ArgumentParser):
    """A parser whose errors are one line, like those of bad data."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `PrmError` instead of printing a page of usage."""
        raise PrmError(f"{' '.join(message.split())} (see --help)") from None


def build_train_parser() -> ArgumentParser:
    """The parser of a training run: a YAML, and every key as a flag."""
    parser = Parser(
        description="Train a personalised reward model: prm train CONFIG.yaml [--key value ...], or go on from a "
        "finished run with new judgements: prm train --from RUN --data.path NEW --output_dir NEXT. "
        "Every key of the YAML is also a flag; flags win."
    )
    parser.add_argument("--config", action="config", help="YAML file with whatever differs from the defaults")
    parser.add_class_arguments(TrainConfig, nested_key=None)
    return parser


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
    parser.add_argument("log", type=str, nargs="?", help="labelled feedback; the run's own test.jsonl if left out")
    parser.add_class_arguments(FeedbackConfig, "data", skip={"path"}, help="how the log becomes comparisons")
    parser.add_argument("--against", type=str | None, help="run folder of the uniform model to compare with")
    parser.add_argument("--backbone", type=str | None, help="where the backbone lies now, if it was moved")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def build_parser() -> ArgumentParser:
    """The parser of the whole command."""
    parser = Parser(prog="prm", description="Personalised reward models: learn who likes what.")
    commands = parser.add_subcommands(required=True)

    commands.add_subcommand("train", build_train_parser(), help="train a model from a feedback log")

    evaluate = Parser(description="Accuracy and likelihood on labelled comparisons, with controls.")
    _add_labelled(evaluate)
    evaluate.add_argument("--by", type=str, nargs="+", default=[], help="metadata fields to show value by value")
    evaluate.add_argument(
        "--drawn", type=Literal["people", "prompts"], default="people", help="what the intervals are drawn over"
    )
    evaluate.add_argument(
        "--groups", type=str | None, help="metadata field that stays the same for each person: compares groups by it"
    )
    commands.add_subcommand("evaluate", evaluate, help="measure a model on held-out comparisons")

    audit = Parser(description="What personalisation costs and whom, against the tuned uniform model.")
    _add_labelled(audit)
    audit.add_argument("--words", type=str | None, help="file of flagged words or phrases, one a line")
    commands.add_subcommand("audit", audit, help="see what personalisation costs, and whom")

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
    commands.add_subcommand("score", score, help="score answers for a person")

    forget = Parser(description="Remove a person's own numbers and rows from a run folder.")
    forget.add_argument("run", type=str, help="run folder that 'prm train' made")
    forget.add_argument("user", type=str, help="user id")
    commands.add_subcommand("forget", forget, help="remove a person from a model")

    theory = Parser(description="Why one reward for all is not enough: the paper's lemmas 3.2 and 3.3, worked out.")
    theory.add_argument("--output", type=str, default="runs/theory", help="folder for theory.json, .png and index.html")
    commands.add_subcommand("theory", theory, help="the paper's two lemmas, in numbers and as a picture")
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
    commands.add_subcommand("reproduce", reproduce, help="run an experiment of the paper")

    data = Parser(description="Look at feedback logs.")
    commands.add_subcommand("data", data, help="look at a feedback log before training")  # its own come after it
    data.add_subcommands(required=True).add_subcommand(
        "describe", build_describe_parser(), help="what a log holds, and whether it is enough"
    )
    return parser


COMMANDS: dict[str, Callable[[Any], None]] = {
    "evaluate": evaluate_command,
    "audit": audit_command,
    "score": score_command,
    "forget": forget_command,
    "theory": theory_command,
    "reproduce": reproduce_command,
    "data": lambda args: describe_command(args.describe),
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


def read_train_config(*paths: str | Path, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """A training run from YAML files, later ones over earlier ones, and `settings` by dotted key over all of them.

    Parsed strictly: raises `PrmError` for an unknown key or a wrong value.
    """
    parser = build_train_parser()
    arguments = []
    for path in paths:
        if not Path(path).is_file():
            raise PrmError(f"{path}: no such file")
        arguments += ["--config", str(path)]
    arguments += [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in (settings or {}).items()
    ]
    try:
        return _train_config(parser, parser.parse_args(arguments))
    except PrmError as error:
        raise PrmError(f"{', '.join(str(path) for path in paths)}: {error}") from None


def _train_config(parser: ArgumentParser, args: Namespace) -> TrainConfig:
    _refuse_nothing(args, TrainConfig().to_dict())
    settings = parser.instantiate(args).as_dict()
    settings.pop("config", None)
    return TrainConfig(**settings)


def _feedback_config(args: Namespace, path: str) -> FeedbackConfig:
    """How a log is read, from the flags `--data.*`."""
    _refuse_nothing(args, asdict(FeedbackConfig()), "data.", skip={"path"})
    settings = vars(args) | {"path": path}
    return FeedbackConfig(**settings | {"tldr": TldrConfig(**vars(args.tldr))})


def _refuse_nothing(given: Namespace, usual: Mapping[str, Any], prefix: str = "", skip: Set[str] = frozenset()) -> None:
    """Raise `PrmError` for null, and for anything but settings in a group: jsonargparse lets both through."""
    for name, default in usual.items():
        if name in skip:
            continue
        value, key = given.get(name), f"{prefix}{name}"
        if isinstance(default, dict) and default:
            if not isinstance(value, Namespace):
                raise PrmError(f"config key '{key}' must hold settings ({', '.join(default)}), got {value!r}")
            _refuse_nothing(value, default, f"{key}.")
        elif value is None and default is not None:
            raise PrmError(f"config key '{key}' must not be null")


def run_command(
    parser: ArgumentParser, arguments: list[str], dispatch: Callable[[ArgumentParser, Namespace], None]
) -> None:
    """Parse and run; what the user can mend is one line on stderr and exit code 2, without a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # not the user's to mend
    for chatty in ("httpx", "datasets", "transformers", "jsonargparse"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    try:
        dispatch(parser, parser.parse_args(arguments))
    except PrmError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


def _dispatch(parser: ArgumentParser, args: Namespace) -> None:
    chosen = args[args.subcommand]
    if args.subcommand == "train":
        train_command(_train_config(build_train_parser(), chosen))
    else:
        COMMANDS[args.subcommand](chosen)


if __name__ == "__main__":
    main()
