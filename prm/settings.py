"""Settings from YAML files and flags, parsed strictly."""

import json
from collections.abc import Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser, Namespace

from prm.config import FeedbackConfig, RunConfig, TldrConfig, TrainConfig
from prm.errors import PrmError

Run = TypeVar("Run", bound=RunConfig)


class Parser(ArgumentParser):
    """A parser whose errors are one line, like those of bad data."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `PrmError` instead of printing a page of usage."""
        raise PrmError(f"{' '.join(message.split())} (see --help)") from None


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
        raise PrmError(f"{', '.join(str(path) for path in paths)}: {error}") from None


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
