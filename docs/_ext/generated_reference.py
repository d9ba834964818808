"""Sphinx extension: the reference of settings and of the command line, from the dataclasses and the parsers.

`{settings-of}` writes the settings of a dataclass, `{run-settings}` what a command's own settings are and where its
groups differ, `{command-line}` every command of a parser. Inline code that names a setting becomes a link to it.
"""

import argparse
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

PAGE = "reference/settings"


def load(path: str) -> Any:
    """The object at `module:name`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def introduction(kind: type[Any]) -> list[str]:
    """The paragraphs of a docstring before its `Args` section."""
    text = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")[0]
    return [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n") if paragraph.strip()]


def written(value: Any) -> str:
    """A default as a YAML holds it."""
    if value == "":
        return "empty"
    if value in ([], {}):
        return "none"
    return json.dumps(value) if isinstance(value, bool | list | dict) or value is None else str(value)


def anchor(key: str, command: str = "") -> str:
    """The id of a setting on the settings page; keys without a group belong to a command."""
    words = re.sub(r"[^\w]+", "-", f"{command}-{key}" if command else key)
    return "setting-" + words.replace("_", "-").lower().strip("-")


def inline(text: str) -> list[nodes.Node]:
    """Text with code in backticks as nodes."""
    parts = re.split(r"(`[^`]+`)", text)
    return [nodes.literal(p[1:-1], p[1:-1]) if p.startswith("`") else nodes.Text(p) for p in parts if p]


def entry(term: list[nodes.Node], texts: list[str], target: str = "") -> nodes.definition_list_item:
    head = nodes.term("", "", *term)
    if target:
        head["ids"] = [target]
    paragraphs = [nodes.paragraph("", "", *inline(text)) for text in texts if text]
    return nodes.definition_list_item("", head, nodes.definition("", *paragraphs))


def _list(items: list[nodes.definition_list_item]) -> nodes.definition_list:
    return nodes.definition_list("", *items, classes=["settings"])


def _value_entries(kind: type[Any], key: str, command: str) -> Iterator[nodes.definition_list_item]:
    from prm.checks import kinds_of, wording
    from prm.cli.parsing import field_descriptions

    texts, defaults = field_descriptions(kind), _defaults(kind)
    for name, inner in kinds_of(kind).items():
        if is_dataclass(inner) or "Spec" in repr(inner):
            continue
        full = f"{key}.{name}" if key else name
        default = defaults.get(name, inspect.Parameter.empty)
        shown = "required" if default is inspect.Parameter.empty else f"default: {written(default)}"
        term = [
            nodes.literal(full, full),
            nodes.inline("", f" {wording(inner)}; {shown}", classes=["allowed"]),
        ]
        yield entry(term, [texts.get(name, "")], anchor(full, "" if key else command))


def _defaults(kind: type[Any]) -> dict[str, Any]:
    try:
        return dict(vars(kind()))
    except TypeError:  # a field without a default
        return {n: p.default for n, p in inspect.signature(kind).parameters.items()}


class SettingsOf(SphinxDirective):
    """The settings of one group: `{settings-of} module:Class`, with the group's key under `:key:`."""

    required_arguments = 1
    option_spec: ClassVar = {"key": directives.unchanged, "command": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        kind = load(self.arguments[0])
        key, command = self.options.get("key", ""), self.options.get("command", "")
        paragraphs: list[nodes.Node] = [nodes.paragraph("", "", *inline(text)) for text in introduction(kind)]
        return [*paragraphs, _list(list(_value_entries(kind, key, command)))]


class RunSettings(SphinxDirective):
    """A command's own settings, the groups that it shares, and where those differ: `{run-settings} module:Class`."""

    required_arguments = 1
    option_spec: ClassVar = {"command": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        from prm.checks import keys_of, kinds_of

        kind, command = load(self.arguments[0]), self.options["command"]
        out: list[nodes.Node] = [nodes.paragraph("", "", *inline(text)) for text in introduction(kind)]
        out.append(_list(list(_value_entries(kind, "", command))))
        groups = [name for name, inner in kinds_of(kind).items() if is_dataclass(inner)]
        differing = []
        for key in keys_of(kind):
            default, usual = _at(kind(), key), _usual(key)
            if "." in key and usual is not None and key not in kind.left_out and default != usual[0]:
                differing.append(f"`{key}` {written(default)}")
        lines = [f"Groups: {', '.join(f'`{name}`' for name in groups)}."]
        if differing:
            lines.append(f"Defaults that differ from those of the group: {', '.join(differing)}.")
        if kind.left_out:
            lines.append(f"Not for this command: {', '.join(f'`{key}`' for key in kind.left_out)}.")
        return [*out, *(nodes.paragraph("", "", *inline(line)) for line in lines)]


def _at(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def _usual(key: str) -> tuple[Any] | None:
    """The default of a setting in its group, in a tuple; `None` if it has no group of its own."""
    group, _, name = key.rpartition(".")
    kind = GROUPS.get(group)
    return None if kind is None else (getattr(load(kind)(), name),)


# the groups that the settings page describes once, for all commands
GROUPS = {
    "data": "prm.config:DataConfig",
    "data.tldr": "prm.config:TldrConfig",
    "backbone": "prm.config:BackboneConfig",
    "users": "prm.config:UserConfig",
    "reward": "prm.config:RewardModelConfig",
    "lora": "prm.config:LoraSettings",
    "search": "prm.config:SearchConfig",
    "optim": "prm.config:OptimConfig",
    "objective": "policy.config:Objective",
    "ppo": "policy.config:Ppo",
    "judge": "policy.compare.config:JudgeSpec",
    "sampling": "rerank.sampling.config:Sampling",
    "service": "rerank.service.config:ServiceConfig",
}


class CommandLine(SphinxDirective):
    """Every command of a parser and its flags: `{command-line} module:function`, a section for each command."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        parser = load(self.arguments[0])()
        return list(self._sections(parser))

    def _sections(self, parser: argparse.ArgumentParser) -> Iterator[nodes.Node]:
        inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        for subcommands in inner:
            for sub in dict.fromkeys(subcommands.choices.values()):
                yield from self._sections(sub)
        if not inner:
            yield self._section(parser)

    def _section(self, parser: argparse.ArgumentParser) -> nodes.section:
        name = nodes.fully_normalize_name(f"command {parser.prog}").replace(" ", "-")
        section = nodes.section("", nodes.title(parser.prog, parser.prog), ids=[name])
        self.state.document.note_explicit_target(section)
        section += nodes.paragraph("", "", *inline(re.sub(r"'([^']+)'", r"`\1`", parser.description or "")))
        own, keys = [], dict[str, list[str]]()
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            key = getattr(action, "key", None)
            if key is not None:
                keys.setdefault(key.rpartition(".")[0], []).append(key)
            else:
                own.append(_flag(action))
        if own:
            section += _list(own)
        for group, names in keys.items():
            what = f"Settings of `{group}` as flags: " if group else "Settings as flags: "
            section += nodes.paragraph("", "", *inline(what + ", ".join(f"`--{key}`" for key in names) + "."))
        return section


def _flag(action: argparse.Action) -> nodes.definition_list_item:
    flags = ", ".join(action.option_strings) or action.dest.upper()
    values = "" if action.nargs == 0 else " ".join(map(str, action.choices or ())) or (action.metavar or "")
    several = " ..." if action.nargs in ("+", "*") else ""
    if action.option_strings and action.nargs != 0 and not values:
        values = action.dest.upper()
    shown = f" {values}{several}" if action.option_strings and values else several
    default = action.default
    fact = ""
    if action.required and action.option_strings:
        fact = "required"
    elif not action.option_strings and action.nargs == "?":
        fact = "may be left out"
    elif default not in (None, "", [], False, argparse.SUPPRESS) and action.option_strings:
        fact = f"default: {' '.join(map(str, default)) if isinstance(default, list) else default}"
    term: list[nodes.Node] = [nodes.literal(flags, flags + shown)]
    if fact:
        term.append(nodes.inline("", f" {fact}", classes=["allowed"]))
    help_text = re.sub(r"'([^']+)'", r"`\1`", (action.help or "").replace("%%", "%"))
    return entry(term, [help_text])


def known_settings() -> dict[str, str]:
    """{key: id on the settings page} of every setting that has a group."""
    from prm.checks import kinds_of

    ids = {}
    for group, kind in GROUPS.items():
        for name, inner in kinds_of(load(kind)).items():
            if not is_dataclass(inner):
                ids[f"{group}.{name}"] = anchor(f"{group}.{name}")
    return ids


class LinkSettings(SphinxPostTransform):
    """Inline code that names a setting, as a key or a flag, links to its entry."""

    default_priority = 5

    def run(self, **_: Any) -> None:
        ids = known_settings()
        for literal in list(self.document.findall(nodes.literal)):
            if re.fullmatch(r"--[\w.]+( [\w.]+)?", literal.astext()):
                literal["classes"].append("flag")
            word = literal.astext().removeprefix("--")
            key = re.match(r"[a-z0-9_.]+", word)
            if key is None or (found := ids.get(key[0])) is None or not re.fullmatch(r"[a-z0-9_.]+([ :=].*)?", word):
                continue
            if isinstance(literal.parent, nodes.reference | nodes.term):
                continue
            builder, here = self.app.builder, self.env.docname
            reference = make_refnode(builder, here, PAGE, found, nodes.literal("", literal.astext()), key[0])
            literal.replace_self(reference)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("settings-of", SettingsOf)
    app.add_directive("run-settings", RunSettings)
    app.add_directive("command-line", CommandLine)
    app.add_post_transform(LinkSettings)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
