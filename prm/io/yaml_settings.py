"""Settings from YAML files, parsed strictly, and the settings with which further logs are read."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from prm.checks import Settings, built, check_tree, kinds_of
from prm.config import INHERITED_LOG_KEYS, FeedbackConfig, PublicSet, SplitConfig, TrainConfig
from prm.errors import PrmError
from prm.io.missing import no_such
from prm.io.yaml_text import load_settings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Run = TypeVar("Run", bound=SplitConfig)


def read_train_config(*paths: str | Path, settings: Mapping[str, object] | None = None) -> TrainConfig:
    """A `TrainConfig` from YAML files (see `read_config`)."""
    return read_config(TrainConfig, *paths, settings=settings)


def read_config(kind: type[Run], *paths: str | Path, settings: Mapping[str, object] | None = None) -> Run:
    """A run's settings from YAML files; later files override earlier ones, and `settings` (dotted keys) override all.

    Raises `PrmError` for an unknown key or a wrong value.
    """
    tree: dict[str, object] = {}
    for path in paths:
        tree = merged(kind, tree, read_yaml(kind, path))
    for key, value in (settings or {}).items():
        set_at(tree, key, value)
    try:
        return built(kind, tree)
    except PrmError as error:
        raise PrmError(": ".join(filter(None, [", ".join(map(str, paths)), str(error)]))) from None


def read_yaml(kind: type[Settings], path: str | Path) -> dict[str, object]:
    """A YAML file as a mapping, checked against the dataclass `kind`. Raises `PrmError` naming the file."""
    if not Path(path).is_file():
        raise PrmError(no_such(path, "file"))
    try:
        tree = load_settings(Path(path).read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise PrmError("must hold settings, one per line, as KEY: VALUE")
        check_tree(kind, tree)
    except (OSError, UnicodeDecodeError, PrmError) as error:
        raise PrmError(f"{path}: {error}") from None
    return tree


def merged(
    kind: "type[DataclassInstance]", under: Mapping[str, object], over: Mapping[str, object]
) -> dict[str, object]:
    """`under`, overridden by `over`: groups of settings are merged key by key, all other values are replaced."""
    result = dict(under)
    for name, value in over.items():
        inner = kinds_of(kind)[name]
        if isinstance(inner, type) and is_dataclass(inner):
            value = merged(inner, _group(result.get(name, {})), _group(value))
        result[name] = value
    return result


def _group(value: object) -> Mapping[str, object]:
    """A group of settings, which earlier checks have seen to be one."""
    assert isinstance(value, Mapping)
    return value


def set_at(tree: dict[str, object], key: str, value: object) -> None:
    """Set the value of a dotted key in place; nested mappings on the way are copied."""
    *groups, name = key.split(".")
    for group in groups:
        inner = dict(_group(tree.get(group, {})))
        tree[group] = inner
        tree = inner
    tree[name] = value


def feedback_config(given: Mapping[str, object], path: str) -> FeedbackConfig:
    """The settings with which a log is read, from the flags `--data.*`."""
    return built(FeedbackConfig, {**given, "path": path}, "data")


def feedback_like_a_runs(
    given: Mapping[str, object], path: str, earlier: Mapping[str, object]
) -> tuple[FeedbackConfig, list[str]]:
    """(settings with which a further log is read, the inherited ones among them that are not defaults, in words).

    Settings without a flag are inherited from the run's own log, columns one by one. Nothing is inherited if the
    source differs, or if `path` is a file and the run's log was a public data set, which is a folder.
    """
    defaults = asdict(FeedbackConfig())
    not_public = earlier.get("source") in get_args(PublicSet) and Path(path).expanduser().is_file()
    given = dict(given)
    columns, tldr = _group(given.pop("columns", {})), _group(given.pop("tldr", {}))
    same = given.get("source", defaults["source"] if not_public else earlier.get("source")) == earlier.get("source")
    kept: dict[str, object] = {
        name: earlier.get(name, defaults[name]) if same else defaults[name] for name in INHERITED_LOG_KEYS
    }
    other_columns = {name: column for name, column in _group(kept["columns"]).items() if name not in columns}
    kept["columns"] = other_columns
    inherited = [
        f"data.{name} {value!r}" for name, value in kept.items() if value != defaults[name] and name not in given
    ]
    kept |= {"columns": {**other_columns, **columns}, "tldr": {**_group(kept["tldr"]), **tldr}}
    return built(FeedbackConfig, {**kept, **given, "path": path}, "data"), inherited
