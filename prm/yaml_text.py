"""YAML of settings: no key twice, and no more than settings can be."""

from dataclasses import dataclass, field
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from prm.errors import PrmError
from prm.files import MOST_LEVELS, shown

MODE = "settings"  # of our parsers; other users of jsonargparse in the process keep theirs
LARGEST_TEXT = 1 << 20  # characters of a file of settings
MOST_VALUES = 10_000  # that it holds, aliases (*name) counted as what they stand for

_parse = get_loader("yaml")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class _Open:
    """A list or mapping that is being read: the values in it so far, and of a mapping its keys."""

    anchor: str | None
    is_mapping: bool
    values: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)


def load_settings(text: str, path: str = "") -> Any:
    """The value that the text stands for, as jsonargparse reads YAML.

    Raises `PrmError` for a key given twice, for more than `LARGEST_TEXT` characters, more than `MOST_VALUES` values,
    and more than `MOST_LEVELS` levels of nesting; `yaml.YAMLError` for what is no YAML.
    """
    try:
        _check(text)
    except PrmError as error:
        raise PrmError(f"{path}: {error}" if path else str(error)) from None
    return _parse(text)


def _check(text: str) -> None:
    if len(text) > LARGEST_TEXT:
        raise PrmError(f"settings of {len(text):,} characters; at most {LARGEST_TEXT:,} are read")
    around: list[_Open] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            _enter_key(around, None, line)
            around.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(around) > MOST_LEVELS:
                raise PrmError(f"line {line}: settings nested more than {MOST_LEVELS} levels deep")
            continue
        if isinstance(event, yaml.ScalarEvent):
            _enter_key(around, event.value, line)
            found, anchor = 1, event.anchor
        elif isinstance(event, yaml.AliasEvent):
            _enter_key(around, None, line)
            found, anchor = sizes.get(event.anchor, 1), None
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = around.pop()
            found, anchor = closed.values, closed.anchor
        else:
            continue
        if anchor is not None:
            sizes[anchor] = found
        if around:
            around[-1].values += found
        if found > MOST_VALUES or (around and around[-1].values > MOST_VALUES):
            raise PrmError(f"line {line}: settings of more than {MOST_VALUES:,} values, aliases written out")


def _enter_key(around: list[_Open], value: str | None, line: int) -> None:
    """Note a child of the innermost mapping; each other one is a key. Raises `PrmError` for one that is there twice."""
    if not around or not around[-1].is_mapping:
        return
    mapping = around[-1]
    mapping.children += 1
    if mapping.children % 2 == 0 or value is None:
        return
    if value in mapping.keys and value != "<<":
        raise PrmError(f"line {line}: the key {shown(value)} is there twice")
    mapping.keys.add(value)


set_loader(MODE, load_settings, exceptions=(yaml.YAMLError,))
