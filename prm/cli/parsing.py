"""Flags: text as it is, errors in one line, and every setting of a dataclass as a flag."""

import argparse
import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from prm.checks import checked, keys_of, wording
from prm.errors import PrmError, closest
from prm.io.yaml_settings import merged, read_yaml, set_at
from prm.io.yaml_text import load_settings


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like those of bad data; a flag cut short is mistyped like any other.

    Flags of settings (`add_settings`) are gathered in `settings`, a mapping like that of a YAML.
    """

    def __init__(self, **options: Any):
        super().__init__(**options | {"allow_abbrev": False, "formatter_class": _Help})
        self.set_defaults(settings={}, parser=self)
        self._named: dict[str, tuple[str, Any]] = {}  # flags that a name is put behind: (key, type of their values)

    def error(self, message: str) -> NoReturn:
        """Raise `PrmError` instead of printing a page of usage."""
        raise PrmError(f"{message} (see --help)") from None

    def add_settings(self, kind: type[Any], key: str = "", skip: Collection[str] = ()) -> None:
        """A flag for every value of a dataclass of settings that stands at `key`, but for the keys in `skip`."""
        described, groups = _describe_settings(kind(), key), dict[str, Any]()
        for full, inner in keys_of(kind, key).items():
            if full in skip:
                continue
            stem = full.rpartition(".")[0]
            group = groups.setdefault(stem, self.add_argument_group(stem) if stem else self)
            text, default = described[full]
            group.add_argument(f"--{full}", action=_Setting, key=full, kind=inner, help=_help(text, default))
            if get_origin(inner) is dict:
                self._named[f"--{full}."] = (full, get_args(inner)[1])

    def add_config(self, kind: type[Any]) -> None:
        """The flag `--config FILE`, whose YAML holds settings of the dataclass."""
        what = "YAML file with whatever differs from the defaults"
        self.add_argument("--config", action=_File, kind=kind, metavar="FILE", help=what)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does; a mistyped flag is told what it may mean."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            flags = [f for f in found.parser._option_string_actions if f.startswith("--")]
            given = [word.partition("=")[0] for word in rest if word.startswith("--")]
            near = [meant for word in given if (meant := _in_a_group(word, flags) or closest(word, flags))]
            self.error(f"unrecognized arguments: {' '.join(rest)}" + "".join(f"; did you mean {m}?" for m in near))
        return found

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does; `--data.columns.NAME` is a flag for every NAME."""
        for word in args or ():
            flag = word.partition("=")[0]
            for stem, (key, kind) in self._named.items():
                if flag.startswith(stem) and flag not in self._option_string_actions:
                    name = f"{key}.{flag.removeprefix(stem)}"
                    self.add_argument(flag, action=_Setting, key=name, kind=kind, help=argparse.SUPPRESS)
        return super().parse_known_args(args, namespace)


class _Setting(argparse.Action):
    """Puts the value of a flag where its key says, in `settings`."""

    def __init__(self, option_strings: Sequence[str], dest: str, key: str, kind: Any, help: str):
        super().__init__(option_strings, dest="settings", metavar=_metavar(kind), help=help, default=argparse.SUPPRESS)
        self.key, self.kind = key, kind

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        tree = dict(namespace.settings)
        set_at(tree, self.key, checked(self.key, self.kind, from_text(self.kind, values)))
        namespace.settings = tree


class _File(argparse.Action):
    """Lays the settings of a YAML over those that came before."""

    def __init__(self, option_strings: Sequence[str], dest: str, kind: type[Any], metavar: str, help: str):
        super().__init__(option_strings, dest="settings", metavar=metavar, help=help, default=argparse.SUPPRESS)
        self.kind = kind

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.settings = merged(self.kind, namespace.settings, read_yaml(self.kind, values))


def typed(kind: Any) -> Callable[[str], Any]:
    """For `type` of a flag that is no setting and no text: what is allowed, as in a dataclass of settings."""
    return partial(_typed, kind)


def _typed(kind: Any, text: str) -> Any:
    try:
        return checked("", kind, from_text(kind, text))
    except PrmError:
        raise argparse.ArgumentTypeError(f"must be {wording(kind)}, got {text!r}") from None


def from_text(kind: Any, text: str) -> Any:
    """What a flag's text stands for where a value of this type is wanted: text stays as it is.

    Lists and mappings are YAML in brackets. Text that stands for no such value is given back, for `checked` to refuse.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return from_text(inner[0], text)
    if origin in (Union, types.UnionType):
        if type(None) in inner and str not in inner and text == "null":
            return None
        read = [from_text(one, text) for one in inner if one not in (str, type(None))]
        return next((value for value in read if value is not text), text)
    if origin in (list, dict):
        if not text.lstrip().startswith("[" if origin is list else "{"):
            return text
        try:
            found = load_settings(text, only_texts=_only_texts(inner[-1]))
        except PrmError:
            return text
        return found if isinstance(found, origin) else text
    if kind is bool:
        return {"true": True, "false": False}.get(text, text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    return text


def _only_texts(kind: Any) -> bool:
    inner = [one for one in get_args(kind) if one is not type(None)]
    return kind is str or get_origin(kind) is Literal or (bool(inner) and all(map(_only_texts, inner)))


def _in_a_group(given: str, flags: Sequence[str]) -> str:
    """The flags that end in this one, as --optim.eval_steps in --steps; nothing where there is none."""
    return " or ".join(flag for flag in flags if flag.endswith((f".{given[2:]}", f"_{given[2:]}")))


def _describe_settings(usual: Any, key: str) -> dict[str, tuple[str, Any]]:
    """(what the docstring says, default) of every value below a dataclass of settings, by its full key."""
    described, found = _arguments(type(usual)), dict[str, tuple[str, Any]]()
    for name, default in vars(usual).items():
        full = f"{key}.{name}" if key else name
        found |= _describe_settings(default, full) if is_dataclass(default) else {full: (described[name], default)}
    return found


def _arguments(kind: type[Any]) -> Mapping[str, str]:
    """What the section `Args` of a dataclass's docstring, and of those that it stands on, says of each field."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        section = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("Args:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, flags=re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


def _metavar(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _metavar(inner[0])
    if origin is Literal:
        return "{" + ",".join(inner) + "}"
    if origin in (Union, types.UnionType):
        return "|".join(map(_metavar, inner))
    names = {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT", type(None): "null"}
    return "[...]" if origin is list else "{...}" if origin is dict else names.get(kind, "VALUE")


def _help(text: str, default: Any) -> str:
    shown = str(default).lower() if isinstance(default, bool) else "null" if default is None else default
    return f"{text} (default: {shown})".replace("%", "%%")


class _Help(argparse.HelpFormatter):
    """Wide enough for long keys."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=40, width=120)
