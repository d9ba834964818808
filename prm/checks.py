"""Dataclasses of settings that check their values when they are created: types, choices and ranges."""

import json
import math
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from inspect import Signature, signature
from numbers import Integral, Real
from typing import (
    TYPE_CHECKING,
    Annotated,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from prm.errors import PrmError, meant, meant_key, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `above` excludes `low`, `below` excludes `high`."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: object) -> bool:
        """Whether the value is a number in the range."""
        if not isinstance(value, int | float):
            return False
        from_low = value > self.low if self.above else value >= self.low
        return from_low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if math.isfinite(self.high):
            return f"in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"
        return f"{'greater than' if self.above else 'of at least'} {self.low:g}"


@dataclass(frozen=True)
class Filled:
    """A text or list that is not empty."""

    def holds(self, value: object) -> bool:
        """Whether the value is not empty."""
        return bool(value.strip() if isinstance(value, str) else value)

    def __str__(self) -> str:
        return "that is not empty"


@dataclass(frozen=True)
class Matching:
    """A text that a regular expression matches completely; `meaning` says which texts these are."""

    pattern: str
    meaning: str

    def holds(self, value: object) -> bool:
        """Whether the value is text and the pattern matches all of it."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.meaning


Text = Annotated[str, Filled()]
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**31 - 1)]  # numpy allows 32 bits, and code adds to seeds
Share = Annotated[float, Range(0, 1)]
PartOf = Annotated[float, Range(0, 1, below=True)]
Inside = Annotated[float, Range(0, 1, above=True, below=True)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]


class _OfInit:
    """The signature of `__init__`, which documentation and notebooks show of a class that has a `__new__`, too."""

    def __get__(self, instance: object, owner: type) -> Signature:
        found = signature(owner.__init__)  # type: ignore[misc]
        return found.replace(parameters=list(found.parameters.values())[1:])


class NamedArguments:
    """Base class of dataclasses. Raises `TypeError` for an argument that it lacks, with the closest that it has."""

    __signature__ = _OfInit()

    def __new__(cls, *args: object, **given: object) -> Self:
        known: list[str] = [one.name for one in fields(cls) if one.init] if is_dataclass(cls) else []
        for name in [name for name in given if name not in known]:
            raise TypeError(f"{cls.__name__} has no argument '{name}'{meant(name, known)}")
        return super().__new__(cls)


@dataclass(eq=False)
class Settings(NamedArguments):
    """Base class of dataclasses of settings; a subclass passes its place in a YAML as `key`.

    Raises `PrmError` naming the full key (`users.kind`), the value and what is allowed.
    """

    _key: ClassVar[str] = ""

    def __init_subclass__(cls, key: str = ""):
        super().__init_subclass__()
        cls._key = key or cls._key

    def __post_init__(self) -> None:
        for name, kind in kinds_of(type(self)).items():
            setattr(self, name, checked(_joined(self._key, name), kind, getattr(self, name)))
        self.check_together()

    def check_together(self) -> None:
        """Raise `PrmError` for values of this group that do not go together."""

    def check_again(self) -> None:
        """Repeat the checks of creation, for fields that were set since."""
        for value in vars(self).values():
            if isinstance(value, Settings):
                value.check_again()
        self.__post_init__()

    def to_dict(self) -> dict[str, object]:
        """All settings, JSON-ready."""
        return asdict(self)


def checked(key: str, kind: object, value: object) -> object:
    """The value converted to its field's type: a whole number to `float`, a path to text, a mapping to a dataclass.

    Args:
        kind: the field's type, with its rules (`Annotated[int, Range(1)]`).

    Raises `PrmError` naming the key, the value and what is allowed.
    """
    if isinstance(kind, type) and is_dataclass(kind):
        return built(kind, value, key)
    inner = get_args(kind)
    if get_origin(kind) is dict and is_dataclass(inner[1]) and isinstance(value, Mapping):
        return {name: checked(f"{key}.{name}", inner[1], part) for name, part in value.items()}
    try:
        return _converted(kind, value)
    except _DoesNotFitError:
        raise PrmError(f"config key '{key}' {refusal(kind, value)}") from None


def built(kind: type[T], value: object, key: str = "") -> T:
    """A dataclass of settings from a mapping of its fields; an existing instance is returned as it is.

    Raises `PrmError` naming all unknown keys, each with the closest known one, and as `checked` does.
    """
    if isinstance(value, kind):
        return value
    parts, unknown = _parts(kind, value, key)
    _raise_all(unknown)
    return kind(**{name: checked(full, inner, part) for name, (full, inner, part) in parts.items()})


def check_tree(kind: "type[DataclassInstance]", value: object, key: str = "") -> None:
    """Raise as `built` does, with all faults at once, but skip checks of values together: some may be set later."""
    _raise_all(_faults(kind, value, key))


def _faults(kind: "type[DataclassInstance]", value: object, key: str) -> Iterator[str]:
    try:
        parts, unknown = _parts(kind, value, key)
    except PrmError as error:  # no mapping
        yield str(error)
        return
    yield from unknown
    for full, inner, part in parts.values():
        if isinstance(inner, type) and is_dataclass(inner):
            yield from _faults(inner, part, full)
            continue
        try:
            checked(full, inner, part)
        except PrmError as error:
            yield str(error)


def _raise_all(faults: Iterable[str]) -> None:
    if found := "; and ".join(faults):
        raise PrmError(found)


def _parts(
    kind: "type[DataclassInstance]", value: object, key: str
) -> tuple[dict[str, tuple[str, object, object]], list[str]]:
    """({name: (full key, type, value)} of a mapping that is to become a dataclass, a fault for each other name)."""
    known = kinds_of(kind)
    if not isinstance(value, Mapping):
        names = ", ".join(known)
        raise PrmError(f"config key '{key}' must hold settings, NAME: VALUE ({names}), got {shown(value)}")
    unknown = []
    for name in [name for name in value if name not in known]:
        full = _joined(key, str(name))
        keys = {**dict.fromkeys(_joined(key, name) for name in known), **keys_of(kind, key)}
        unknown.append(f"config key '{full}' is not known{meant_key(full, keys)}")
    return {name: (_joined(key, name), known[name], part) for name, part in value.items() if name in known}, unknown


def kinds_of(kind: "type[DataclassInstance]") -> dict[str, object]:
    """Types of a dataclass's fields, by name, with their rules."""
    return _kinds_of(kind)


@cache
def _kinds_of(kind: "type[DataclassInstance]") -> dict[str, object]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def keys_of(kind: "type[DataclassInstance]", key: str = "") -> dict[str, object]:
    """Types of all values in a dataclass of settings and its groups, by full key."""
    types_by_key: dict[str, object] = {}
    for name, inner in kinds_of(kind).items():
        full = _joined(key, name)

        types_by_key |= keys_of(inner, full) if isinstance(inner, type) and is_dataclass(inner) else {full: inner}
    return types_by_key


def fits(kind: object, value: object) -> bool:
    """Whether a field of this type accepts a value."""
    with suppress(_DoesNotFitError):
        _converted(kind, value)
        return True
    return False


_RULES = Range | Filled | Matching


class _DoesNotFitError(Exception):
    pass


def _converted(kind: object, value: object) -> object:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner_value = _converted(inner[0], value)
        if not all(rule.holds(inner_value) for rule in inner[1:] if isinstance(rule, _RULES)):
            raise _DoesNotFitError
        return inner_value
    if origin is Literal:
        if type(value) not in map(type, inner) or value not in inner:
            raise _DoesNotFitError
        return value
    if origin in (Union, types.UnionType):
        return _any_of(inner, value)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise _DoesNotFitError
        return [_converted(inner[0], item) for item in value]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _DoesNotFitError
        return {_converted(inner[0], name): _converted(inner[1], item) for name, item in value.items()}
    return value if kind is object else _plain(kind, value)


def _plain(kind: object, value: object) -> object:
    """The value as text, number, bool or `None`. Numbers must be finite, and a bool is not a number."""
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool) and _finite(value):
        return float(value)
    if (kind is bool and isinstance(value, bool)) or (kind is type(None) and value is None):
        return value
    raise _DoesNotFitError


def _finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


def _any_of(kinds: tuple[object, ...], value: object) -> object:
    """The value converted to the first type that accepts it."""
    for kind in kinds:
        with suppress(_DoesNotFitError):
            return _converted(kind, value)
    raise _DoesNotFitError


def refusal(kind: object, value: object) -> str:
    """End of a message about a value that does not fit: what is allowed, what was given, and the closest choice."""
    choices, items = _choices(kind), value if isinstance(value, list | tuple) else [value]
    wrong = [item for item in items if isinstance(item, str) and item not in choices]
    return f"must be {wording(kind)}, got {shown(value)}" + (meant(wrong[0], choices) if wrong else "")


def _choices(kind: object) -> list[str]:
    """The texts that a field of this type, or its items, may be chosen from."""
    inner = get_args(kind)
    return [text for one in inner for text in ([str(one)] if get_origin(kind) is Literal else _choices(one))]


def wording(kind: object) -> str:
    """The values that a field accepts, in words: "a number in [0, 1]"."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        rules = " and ".join(str(rule) for rule in inner[1:] if isinstance(rule, _RULES))
        base, comma, items = wording(inner[0]).partition(", each ")
        return f"{base} {rules}{comma}{items}"
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(wording, inner))
    if origin is list:
        return f"a list, each item {wording(inner[0])}"
    if origin is dict:
        return f"settings, NAME: VALUE, each value {wording(inner[1])}"
    return "settings" if is_dataclass(kind) else _PLAIN[kind]


_PLAIN: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    object: "anything",
}


def require(holds: bool, key: str, fault: str) -> None:
    """Raise `PrmError` naming a config key and its fault, unless `holds` is true."""
    if not holds:
        raise PrmError(f"config key '{key}' {fault}")


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def differing(
    stored: Mapping[str, object], current: Mapping[str, object], defaults: Mapping[str, object] | None = None
) -> list[str]:
    """Dotted keys of nested settings whose values differ, as JSON holds them.

    Args:
        defaults: values of keys that one of the two lacks.
    """
    one, other = (_by_key(defaults or {}) | _by_key(settings) for settings in (stored, current))
    return sorted(key for key in one | other if one.get(key) != other.get(key))


def _by_key(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in json.loads(json.dumps(settings)).items():
        nested = isinstance(value, dict) and bool(value)
        flat |= _by_key(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat
