"""Settings from YAML files and flags, parsed strictly."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args

from jsonargparse import ArgumentParser, Namespace

from prm.config import HOW_A_LOG_IS_READ, FeedbackConfig, PublicSet, RunConfig, TldrConfig, TrainConfig
from prm.errors import PrmError, closest
from prm.yaml_text import MODE

Run = TypeVar("Run", bound=RunConfig)


class Parser(ArgumentParser):
    """A parser whose errors are one line, like those of bad data; a flag cut short is mistyped like any other."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, allow_abbrev=False, **{"parser_mode": MODE} | settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `PrmError` instead of printing a page of usage, with the names that mistyped ones may mean."""
        hints = "".join(f"; did you mean {meant}?" for meant in self._meant(message))
        told = _in_our_words(" ".join(message.split()).replace(" (see --help)", ""))  # an inner parser has said so
        raise PrmError(f"{told}{hints} (see --help)") from None

    def _meant(self, message: str) -> list[str]:
        """The flags or keys that come closest to those which jsonargparse does not know."""
        parser: argparse.ArgumentParser = self
        given_words = getattr(self, "args", None)  # a group of settings that is checked by itself was given none
        for word in given_words if isinstance(given_words, list) else []:  # into the subcommands that were given
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction) and word in action.choices:
                    parser = action.choices[word]
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        if message.startswith("unrecognized arguments: "):
            given = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
            return [meant for word in given if (meant := _without_its_group(word, flags) or closest(word, flags))]
        key = re.search(r"(?:Group '([\w.]+)' .*)?[Oo]ption '([\w.]+)'", message)
        meant = closest(".".join(filter(None, key.groups())), [flag[2:] for flag in flags]) if key else None
        return [f"'{meant}'"] if meant else []


def _without_its_group(given: str, flags: Sequence[str]) -> str:
    """The flags that end in this one, as --optim.eval_steps in --steps; nothing where there is none."""
    return " or ".join(flag for flag in flags if flag.endswith((f".{given[2:]}", f"_{given[2:]}")))


def _in_our_words(message: str) -> str:
    """jsonargparse's message of a value of the wrong kind, without Python's names of types; others as they are."""
    # of a group's entries, which a parser of their own has checked
    message = re.sub(r"^Parser key \"(.+?)\": config key ", r"config key '\1': in one of its entries ", message)
    found = re.fullmatch(
        r"Parser key \"(?P<key>[^\"]+)\": (?:Expected a (?P<kind>.+?)\. Got value: ?(?P<value>.*)"
        r"|Not a valid subclass of .+?\. Got value: (?P<entry>.+?) Subclass types expect .*"
        r"|Does not validate against any of the Union subtypes Subtypes: \[(?P<kinds>.+?)\] Errors: .* "
        r"Given value: (?P<other>.*))",
        message,
    )
    if found is None:
        return message
    wanted = found["kind"] or (found["kinds"] or "<class 'dict'>").replace(", <", " or <")
    for name, words in _KINDS.items():
        wanted = re.sub(name, words, wanted)
    value = next(found[name] for name in ("value", "entry", "other") if found[name] is not None)
    return f"config key '{found['key']}' must be {wanted}, got {value or 'nothing'}"


_KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'list'>": "a list, in brackets: [...]",
    "<class 'dict'>": "settings, key: value",
    "<class 'NoneType'>": "null",
    r"typing\.Literal\[(.*)\]": r"one of \1",
}


def build_train_parser() -> ArgumentParser:
    """The parser of a training run of `prm`: a YAML, and every key as a flag."""
    return config_parser(
        TrainConfig,
        "Train a personalised reward model: prm train CONFIG.yaml [--key value ...], or go on from a "
        "finished run with new judgements: prm train --from RUN --data.path NEW --output_dir NEXT. "
        "Every key of the YAML is also a flag; flags win.",
    )


def config_parser(kind: type[RunConfig], description: str) -> ArgumentParser:
    """The parser of a training run with the settings of the dataclass `kind`: a YAML, and every key as a flag."""
    parser = Parser(description=description)
    parser.add_argument("--config", action="config", help="YAML file with whatever differs from the defaults")
    parser.add_class_arguments(kind, nested_key=None)
    return parser


def read_train_config(*paths: str | Path, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """A training run of `prm` from YAML files, as `read_config` reads them."""
    return read_config(TrainConfig, *paths, settings=settings)


def read_config(kind: type[Run], *paths: str | Path, settings: Mapping[str, Any] | None = None) -> Run:
    """A training run from YAML files, later ones over earlier ones, and `settings` by dotted key over all of them.

    Parsed strictly: raises `PrmError` for an unknown key or a wrong value.
    """
    parser = config_parser(kind, "")
    arguments = []
    for path in paths:
        if not Path(path).is_file():
            raise PrmError(f"{path}: no such file")
        arguments += ["--config", str(path)]
    arguments += [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in (settings or {}).items()
    ]
    try:
        return parsed_config(kind, parser, parser.parse_args(arguments))
    except PrmError as error:
        raise PrmError(": ".join(filter(None, [", ".join(map(str, paths)), str(error)]))) from None


def parsed_config(kind: type[Run], parser: ArgumentParser, args: Namespace) -> Run:
    """A training run from what the parser of `config_parser` read. Raises `PrmError` for null and the like."""
    _refuse_nothing(args, kind().to_dict())
    settings = parser.instantiate(args).as_dict()
    settings.pop("config", None)
    return kind(**settings)


def feedback_config(args: Namespace, path: str) -> FeedbackConfig:
    """How a log is read, from the flags `--data.*`."""
    _refuse_nothing(args, asdict(FeedbackConfig()), "data.", skip={"path"})
    settings = vars(args) | {"path": path}
    return FeedbackConfig(**settings | {"tldr": TldrConfig(**vars(args.tldr))})


def add_feedback_like_a_runs(parser: ArgumentParser) -> None:
    """The flags `--data.*`, null where they are not given: `feedback_like_a_runs` then takes the run's settings."""
    parser.add_class_arguments(FeedbackConfig, "data", skip={"path"}, help="how the log becomes comparisons")
    keys = parser.get_defaults().keys()
    parser.set_defaults({key: None for key in keys if key.startswith("data.")})


def feedback_like_a_runs(args: Namespace, path: str, earlier: Mapping[str, Any]) -> tuple[FeedbackConfig, list[str]]:
    """(how a log is read: by the flags that are given, else as a run read its own; what of that is no default).

    Columns are taken over one by one. With another source than the run's, nothing is; nor for a file where the run's
    was a public data set, which is a folder.
    """
    given = {name: value for name, value in vars(args).items() if value is not None and name != "tldr"}
    columns, usual = given.pop("columns", {}), asdict(FeedbackConfig())
    own_file = earlier.get("source") in get_args(PublicSet) and Path(path).expanduser().is_file()
    same = given.get("source", "pairs" if own_file else earlier.get("source")) == earlier.get("source")
    found = {name: earlier.get(name, usual[name]) if same else usual[name] for name in HOW_A_LOG_IS_READ}
    found["columns"] = {name: column for name, column in found["columns"].items() if name not in columns}
    taken = [f"data.{name} {value!r}" for name, value in found.items() if value != usual[name] and name not in given]
    found["columns"] |= columns
    tldr = found["tldr"] | {name: value for name, value in vars(args.tldr).items() if value is not None}
    return FeedbackConfig(**found | given | {"path": path, "tldr": TldrConfig(**tldr)}), taken


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
