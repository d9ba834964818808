"""Parses YAML of settings: YAML 1.2 values, no duplicate keys, and limits on size and nesting."""

import re
from dataclasses import dataclass, field

import yaml

from prm.errors import PrmError, shown
from prm.io.tables import MOST_LEVELS

LARGEST_TEXT = 1 << 20  # characters of a settings file
MOST_VALUES = 10_000  # values in it, with aliases (*name) expanded

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_RESOLVED = (  # (tag, pattern, first characters): 1e-3 is a number; `yes`, 2026-03-01 and 007 are text
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
        for first in ("", *"tfn~-+.0123456789<")  # "": an empty value
    }


class _Texts(_Loader):  # type: ignore[misc, valid-type]
    yaml_implicit_resolvers: dict[str, object] = {}  # noqa: RUF012


@dataclass
class _Open:
    """A list or mapping that is being parsed: the number of values in it so far, and a mapping's keys."""

    anchor: str | None
    is_mapping: bool
    values: int = 1
    children: int = 0
    keys: set[str] = field(default_factory=set)


def load_settings(text: str, path: str = "", only_texts: bool = False) -> object:
    """The value of YAML text.

    Args:
        path: the file it comes from, for messages.
        only_texts: keep every value as text, `null` and `007` too.

    Raises `PrmError` for a duplicate key, more than `LARGEST_TEXT` characters, more than `MOST_VALUES` values, more
    than `MOST_LEVELS` levels of nesting, and invalid YAML.
    """
    try:
        _check(text)
        return yaml.load(text, Loader=_Texts if only_texts else _Values)
    except (PrmError, yaml.YAMLError) as error:
        fault = str(error) if isinstance(error, PrmError) else f"is no YAML: {' '.join(str(error).split())}"
        raise PrmError(f"{path}: {fault}" if path else fault) from None


def _check(text: str) -> None:
    if len(text) > LARGEST_TEXT:
        raise PrmError(f"settings of {len(text):,} characters; at most {LARGEST_TEXT:,} are allowed")
    enclosing: list[_Open] = []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            _enter_key(enclosing, None, line)
            enclosing.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if len(enclosing) > MOST_LEVELS:
                raise PrmError(f"line {line}: settings nested more than {MOST_LEVELS} levels deep")
            continue
        if isinstance(event, yaml.ScalarEvent):
            _enter_key(enclosing, event.value, line)
            size, anchor = 1, event.anchor
        elif isinstance(event, yaml.AliasEvent):
            _enter_key(enclosing, None, line)
            size, anchor = sizes.get(event.anchor, 1), None
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = enclosing.pop()
            size, anchor = closed.values, closed.anchor
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if enclosing:
            enclosing[-1].values += size
        if size > MOST_VALUES or (enclosing and enclosing[-1].values > MOST_VALUES):
            raise PrmError(f"line {line}: settings of more than {MOST_VALUES:,} values, with aliases expanded")


def _enter_key(enclosing: list[_Open], value: str | None, line: int) -> None:
    """Count a child of the innermost mapping; every other child is a key. Raises `PrmError` for a duplicate key."""
    if not enclosing or not enclosing[-1].is_mapping:
        return
    mapping = enclosing[-1]
    mapping.children += 1
    if mapping.children % 2 == 0 or value is None:
        return
    if value in mapping.keys and value != "<<":
        raise PrmError(f"line {line}: the key {shown(value)} is there twice")
    mapping.keys.add(value)
