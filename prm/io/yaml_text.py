"""YAML of settings: values as YAML 1.2 has them, no key twice, and no more than settings can be."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from prm.errors import PrmError, shown
from prm.io.tables import MOST_LEVELS

LARGEST_TEXT = 1 << 20  # characters of a file of settings
MOST_VALUES = 10_000  # that it holds, aliases (*name) counted as what they stand for

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_RESOLVED = (  # (tag, what is one, how it may begin); neither `yes` nor 2026-03-01 nor 007 is, and 1e-3 is a number
    ("bool", r"(true|false)$", "tf"),
    ("null", r"(null|~|)$", "n~"),
    ("int", r"[-+]?(0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$", "-+.0123456789"),
    ("float", r"([-+]?\.inf|\.nan)$", "-+."),
    ("merge", r"<<$", "<"),
)


class _Values(_Loader):  # type: ignore[misc, valid-type]
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(_TAG + tag, re.compile(pattern)) for tag, pattern, firsts in _RESOLVED if first in firsts]
        for first in ("", *"tfn~-+.0123456789<")  # what is empty begins with nothing
    }


class _Texts(_Loader):  # type: ignore[misc, valid-type]
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


@dataclass
class _Open:
    """A list or mapping that is being read: the values in it so far, and of a mapping its keys."""

    anchor: str | None
    is_mapping: bool
    values: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)


def load_settings(text: str, path: str = "", only_texts: bool = False) -> Any:
    """The value that the text stands for.

    Args:
        path: where it stands, for messages.
        only_texts: every value in it is text, `null` and `007` too.

    Raises `PrmError` for a key given twice, for more than `LARGEST_TEXT` characters, more than `MOST_VALUES` values,
    more than `MOST_LEVELS` levels of nesting, and what is no YAML.
    """
    try:
        _check(text)
        return yaml.load(text, Loader=_Texts if only_texts else _Values)
    except (PrmError, yaml.YAMLError) as error:
        fault = str(error) if isinstance(error, PrmError) else f"is no YAML: {' '.join(str(error).split())}"
        raise PrmError(f"{path}: {fault}" if path else fault) from None


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
