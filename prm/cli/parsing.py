"""The argument parser: text flags taken literally, errors in one line, and a flag for every setting of a dataclass."""

import argparse
import inspect
import re
import types
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NoReturn, TypedDict, Union, Unpack, get_args, get_origin

from prm.checks import Settings, checked, keys_of, refusal
from prm.cli.completion import SHELLS, completion_script
from prm.errors import PrmError, meant, meant_key
from prm.io.yaml_settings import merged, read_yaml, set_at
from prm.io.yaml_text import load_settings

_YAML = (".yaml", ".yml")
# settings that `--help` leaves to `--help_all`: of one source or one kind of model, or right for most runs as they are
_FURTHER = (
    *("alpha", "trainer"),
    *("data.values", "data.dataset_split", "data.anonymous", "data.min_rating_difference", "data.standardise"),
    *("data.max_pairs", "data.tldr.", "data.test_from", "data.validation_fraction", "data.judges_per_pair"),
    *("data.on_artefact", "backbone.layers", "backbone.dtype"),
    *("users.num_virtual_tokens", "users.generic", "users.clusters", "users.softmax", "users.rank"),
    *("users.text_dropout", "reward.position", "reward.pooling", "reward.features", "reward.kernel", "lora."),
    *("search.l2", "search.user_l2", "search.layers", "search.poolings", "search.combine", "search.kernels"),
    *("optim.micro_batch_size", "optim.head_lr", "optim.lora_lr", "optim.backbone_lr", "optim.warmup_steps"),
    *("optim.lr_scheduler_type", "optim.max_grad_norm", "optim.eval_steps", "optim.early_stopping_patience"),
    "optim.gradient_checkpointing",
)
_MOST_VALUES = 8  # of a setting, that are listed behind its flag; more are in its description


class _Options(TypedDict, total=False):
    prog: str
    description: str
    epilog: str


class Parser(ArgumentParser):
    """A parser that raises `PrmError` for bad arguments, and does not accept abbreviated flags.

    The values of settings flags (`add_settings`) are collected in `settings`, a mapping like that of a YAML.
    `given` holds them one by one, in order: (key, value), and ("", settings) for a YAML.
    """

    def __init__(self, **options: Unpack[_Options]):
        super().__init__(**options, allow_abbrev=False, formatter_class=_Help)
        self.set_defaults(given=(), parser=self)
        # "--data.columns.": (key, type of the values); a name follows
        self._name_flags: dict[str, tuple[str, object]] = {}
        self._everything = False  # in the help

    def error(self, message: str) -> NoReturn:
        """Raise `PrmError` instead of printing a page of usage."""
        raise PrmError(f"{message} (see --help)") from None

    def add_package_flags(self, complete: Callable[[], ArgumentParser]) -> None:
        """Add `--version` and `--print-completion`.

        Args:
            complete: builds the parser of the whole command, for the completion script.
        """
        self.add_argument("--version", action=_Version, help="print the version, and exit")
        script = "print a script that completes this command's arguments, and exit"
        self.add_argument("--print_completion", action=_Completion, complete=complete, help=script)

    def add_settings(self, kind: type[Settings], key: str = "", skip: Collection[str] = ()) -> None:
        """Add a flag for every value of the settings dataclass `kind`, found at `key`, except the keys in `skip`."""
        described, groups = _describe_settings(kind(), key), dict[str, argparse._ActionsContainer]({"": self})
        types = {full: inner for full, inner in keys_of(kind, key).items() if full not in skip}
        if "--help_all" not in self._option_string_actions and any(full.startswith(_FURTHER) for full in types):
            self.add_argument("--help_all", action=_HelpAll, help="show all settings, also the rarer ones, and exit")
        for full, inner in types.items():
            stem = full.rpartition(".")[0]
            text, default = described[full]
            if stem not in groups:
                groups[stem] = self.add_argument_group(stem, described[stem][0] if stem in described else None)
            group = groups[stem]
            group.add_argument(f"--{full}", action=_Setting, key=full, kind=inner, help=_help(text, default))
            if get_origin(inner) is dict:
                self._name_flags[f"--{full}."] = (full, get_args(inner)[1])

    def add_config(self, kind: type[Settings]) -> None:
        """Add the positional `config_or_log`, and the flag `--config FILE`: a YAML with settings of the dataclass."""
        self.usage = f"{self.prog} [CONFIG.yaml | LOG] [--KEY VALUE ...]"
        what = "YAML file with the settings that differ from the defaults"
        log = "or a feedback log, as 'data.path': file, folder or hub id of a data set"
        self.add_argument("config_or_log", nargs="?", help=f"{what} ({' or '.join(_YAML)}), {log}")
        self.add_argument("--config", action=_File, kind=kind, metavar="FILE", help=what)
        self.set_defaults(config_kind=kind)

    def format_help(self) -> str:
        """The help; `_FURTHER` settings, and groups that have no others, only if everything is asked for."""

        def shown(actions: Sequence[argparse.Action]) -> list[argparse.Action]:
            return [a for a in actions if self._everything or not _is_further(a)]

        formatter = self._get_formatter()
        formatter.add_usage(self.usage, shown(self._actions), self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group in self._action_groups:
            if actions := shown(group._group_actions):
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(actions)
                formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> Namespace:
        """Parse as argparse does; the error for a mistyped flag suggests similar flags."""
        parsed, rest = self.parse_known_args(args, namespace)
        if len(rest) == 1 and (late := _optional_positional(parsed)) and not rest[0].startswith("-"):
            setattr(parsed, late, rest.pop())  # argparse leaves it over behind a flag, before Python 3.12
        if rest:
            names = [flag[2:] for flag in parsed.parser._option_string_actions if flag.startswith("--")]
            unknown = [word[2:].partition("=")[0] for word in rest if word.startswith("--")]
            similar = "".join(meant_key(name, names, before="--") for name in unknown)
            self.error(f"unrecognized arguments: {' '.join(rest)}{similar}")
        parsed.settings = _settings_of(parsed)
        return parsed

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """Parse as argparse does; `--data.columns.NAME` is a flag for every NAME."""
        for word in args or ():
            flag = word.partition("=")[0]
            for stem, (key, kind) in self._name_flags.items():
                if flag.startswith(stem) and flag not in self._option_string_actions:
                    name = f"{key}.{flag.removeprefix(stem)}"
                    self.add_argument(flag, action=_Setting, key=name, kind=kind, help=argparse.SUPPRESS)
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:  # also of a command that there is not
            near = meant(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{near}") from None


class _Version(argparse.Action):
    """Prints the command's name and the package's version, which is read when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: object, option_string: str | None = None
    ) -> None:
        from prm.io.environment import __version__

        print(f"{parser.prog} {__version__}")
        parser.exit()


class _HelpAll(argparse.Action):
    """Prints the help with every setting."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: object, option_string: str | None = None
    ) -> None:
        assert isinstance(parser, Parser)
        parser._everything = True
        parser.print_help()
        parser.exit()


class _Completion(argparse.Action):
    """Prints the completion script of a shell."""

    def __init__(self, option_strings: Sequence[str], dest: str, complete: Callable[[], ArgumentParser], help: str):
        super().__init__(option_strings, dest, default=argparse.SUPPRESS, choices=SHELLS, help=help)
        self._complete = complete

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: object, option_string: str | None = None
    ) -> None:
        print(completion_script(self._complete(), str(values)))
        parser.exit()


class _Setting(argparse.Action):
    """Adds the key and the value of a flag to `given`."""

    def __init__(self, option_strings: Sequence[str], dest: str, key: str, kind: object, help: str):
        nargs, const = ("?", "true") if kind is bool else (None, None)  # the bare flag says yes
        values, default = _metavar(kind), argparse.SUPPRESS
        super().__init__(option_strings, "given", nargs, const, default, metavar=values, help=help)
        self.key, self.kind = key, kind

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: object, option_string: str | None = None
    ) -> None:
        value = checked(self.key, self.kind, from_text(self.kind, str(values)))
        namespace.given = (*namespace.given, (self.key, value))


def _is_further(action: argparse.Action) -> bool:
    return isinstance(action, _Setting) and action.key.startswith(_FURTHER)


class _File(argparse.Action):
    """Adds the settings of a YAML to `given`."""

    def __init__(self, option_strings: Sequence[str], dest: str, kind: type[Settings], metavar: str, help: str):
        super().__init__(option_strings, dest="given", metavar=metavar, help=help, default=argparse.SUPPRESS)
        self.kind = kind

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: object, option_string: str | None = None
    ) -> None:
        namespace.given = (*namespace.given, ("", read_yaml(self.kind, str(values))))


def _optional_positional(parsed: Namespace) -> str | None:
    """The name of the command's optional positional argument, if it has one that was not given."""
    actions = [a for a in parsed.parser._actions if not a.option_strings and a.nargs == "?" and a.choices is None]
    return next((action.dest for action in actions if getattr(parsed, action.dest) is None), None)


def _settings_of(parsed: Namespace) -> dict[str, object]:
    """The settings that arguments give: those of YAMLs, that which is named without a flag first, then of flags.

    A log that is named without a flag wins over the `data.path` of a YAML. Raises `PrmError` if a flag names another.
    """
    given, source, tree = list(parsed.given), getattr(parsed, "config_or_log", None), dict[str, object]()
    if source is not None and Path(source).suffix.lower() in _YAML:
        given.insert(0, ("", read_yaml(parsed.config_kind, source)))
    elif source is not None:
        if other := [value for key, value in given if key == "data.path" and value != source]:
            raise PrmError(f"two logs are named, {source!r} and --data.path {other[-1]!r}: name one")
        given.append(("data.path", source))
    for key, value in sorted(given, key=lambda item: bool(item[0])):  # flags win over every YAML
        if key:
            set_at(tree, key, value)
        else:
            tree = merged(parsed.config_kind, tree, value)
    return tree


def typed(kind: object) -> Callable[[str], object]:
    """A `type` for a flag that is no setting: checks the value as settings dataclasses do."""
    return partial(_typed, kind)


def _typed(kind: object, text: str) -> object:
    try:
        return checked("", kind, from_text(kind, text))
    except PrmError:
        raise argparse.ArgumentTypeError(refusal(kind, text)) from None


def from_text(kind: object, text: str) -> object:
    """Convert a flag's text to a value of type `kind`; text stays as it is.

    Lists and mappings are YAML in brackets. Text that is no such value is returned, and `checked` refuses it.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return from_text(inner[0], text)
    if origin in (Union, types.UnionType):
        if type(None) in inner and str not in inner and text == "null":
            return None
        values = [from_text(one, text) for one in inner if one not in (str, type(None))]
        return next((value for value in values if value is not text), text)
    if origin in (list, dict):
        if not text.lstrip().startswith("[" if origin is list else "{"):
            return text
        try:
            value = load_settings(text, only_texts=_is_text(inner[-1]))
        except PrmError:
            return text
        return value if isinstance(value, origin) else text
    if kind is bool:
        return {"true": True, "false": False}.get(text, text)
    if kind is int or kind is float:
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            return text
    return text


def _is_text(kind: object) -> bool:
    inner = [one for one in get_args(kind) if one is not type(None)]
    return kind is str or get_origin(kind) is Literal or (bool(inner) and all(map(_is_text, inner)))


def _describe_settings(defaults: Settings, key: str) -> dict[str, tuple[str, object]]:
    """(description in the docstring, default) of every value and group in a settings dataclass, by its full key."""
    described = field_descriptions(type(defaults))
    summary = inspect.cleandoc(type(defaults).__doc__ or "").partition("\n")[0]
    settings: dict[str, tuple[str, object]] = {key: (summary, None)}
    for name, default in vars(defaults).items():
        full = f"{key}.{name}" if key else name
        if isinstance(default, Settings):
            settings |= _describe_settings(default, full)
        else:
            settings[full] = described[name], default
    return settings


def field_descriptions(kind: type) -> Mapping[str, str]:
    """The description of each field in the `Args` section of a dataclass's docstring, and of its base classes'."""
    described: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        section = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("Args:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE):
            described[name] = " ".join(text.split())
    return described


def _metavar(kind: object) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _metavar(inner[0])
    if origin is Literal:
        return "{" + ",".join(inner) + "}" if len(inner) <= _MOST_VALUES else "NAME"
    if origin in (Union, types.UnionType):
        return "|".join(map(_metavar, inner))
    names: dict[object, str] = {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT", type(None): "null"}
    return "[...]" if origin is list else "{...}" if origin is dict else names.get(kind, "VALUE")


def _help(text: str, default: object) -> str:
    shown = str(default).lower() if isinstance(default, bool) else "null" if default is None else default
    return (text if shown in ("", [], {}) else f"{text} (default: {shown})").replace("%", "%%")


class _Help(argparse.HelpFormatter):
    """A help formatter that is wide enough for long keys."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=40, width=120)
