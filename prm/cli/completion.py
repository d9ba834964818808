"""Completion scripts for shells: every subcommand, flag, choice and path."""

from argparse import Action, ArgumentParser
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal, Union, get_args, get_origin

SHELLS = ("bash", "zsh", "fish")


def completion_script(parser: ArgumentParser, shell: str) -> str:
    """The script that a shell reads to complete a command's arguments.

    Args:
        parser: of the complete command; it is changed, and of no other use afterwards.
        shell: one of `SHELLS`.
    """
    import shtab

    for action in _actions(parser):
        if action.nargs != 0 and action.choices is None:
            if choices := _choices(_kind_of(action)):
                action.choices = choices
            elif _kind_of(action) is str and not hasattr(action, "complete"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def _actions(parser: ArgumentParser) -> Iterator[Action]:
    """All arguments of a command and its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for inner in action.choices.values():
                yield from _actions(inner)


def _kind_of(action: Action) -> object:
    """The type of a flag's value: of a setting, of `typed`, otherwise text."""
    kind = getattr(action, "kind", str)
    if isinstance(action.type, partial):
        kind = action.type.args[0]
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _choices(kind: object) -> list[str]:
    """The values that a type allows, if they are few."""
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if get_origin(kind) is Union:
        return [value for inner in get_args(kind) for value in _choices(inner)]
    return []
