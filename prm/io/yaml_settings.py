"""Settings from YAML files, parsed strictly; how a further log is read."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from prm.checks import built, check_tree, kinds_of
from prm.config import HOW_A_LOG_IS_READ, FeedbackConfig, PublicSet, RunConfig, TrainConfig
from prm.errors import PrmError
from prm.io.yaml_text import load_settings

Run = TypeVar("Run", bound=RunConfig)


def read_train_config(*paths: str | Path, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """A training run of `prm` from YAML files, as `read_config` reads them."""
    return read_config(TrainConfig, *paths, settings=settings)


def read_config(kind: type[Run], *paths: str | Path, settings: Mapping[str, Any] | None = None) -> Run:
    """A training run from YAML files, later ones over earlier ones, and `settings` by dotted key over all of them.

    Parsed strictly: raises `PrmError` for an unknown key or a wrong value.
    """
    tree: dict[str, Any] = {}
    for path in paths:
        tree = merged(kind, tree, read_yaml(kind, path))
    for key, value in (settings or {}).items():
        set_at(tree, key, value)
    try:
        return built(kind, tree)
    except PrmError as error:
        raise PrmError(": ".join(filter(None, [", ".join(map(str, paths)), str(error)]))) from None


def read_yaml(kind: type[Any], path: str | Path) -> dict[str, Any]:
    """The mapping of a YAML file, whose values fit the dataclass `kind`. Raises `PrmError` naming the file."""
    if not Path(path).is_file():
        raise PrmError(f"{path}: no such file")
    try:
        tree = load_settings(Path(path).read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise PrmError("must hold settings, one a line, as KEY: VALUE")
        check_tree(kind, tree)
    except (OSError, UnicodeDecodeError, PrmError) as error:
        raise PrmError(f"{path}: {error}") from None
    return tree


def merged(kind: type[Any], under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another one: groups of settings key by key, everything else as a whole."""
    found = dict(under)
    for name, value in over.items():
        inner = kinds_of(cast(Any, kind))[name]
        found[name] = merged(cast(type, inner), found.get(name, {}), value) if is_dataclass(inner) else value
    return found


def set_at(tree: dict[str, Any], key: str, value: Any) -> None:
    """Put a value where its dotted key says; the mappings on the way are copies."""
    *groups, name = key.split(".")
    for group in groups:
        tree[group] = dict(tree.get(group, {}))
        tree = tree[group]
    tree[name] = value


def feedback_config(given: Mapping[str, Any], path: str) -> FeedbackConfig:
    """How a log is read, from the flags `--data.*` that were given."""
    return built(FeedbackConfig, {**given, "path": path}, "data")


def feedback_like_a_runs(
    given: Mapping[str, Any], path: str, earlier: Mapping[str, Any]
) -> tuple[FeedbackConfig, list[str]]:
    """(how a log is read: by the flags that are given, else as a run read its own; what of that is no default).

    Columns are taken over one by one. With another source than the run's, nothing is; nor for a file where the run's
    was a public data set, which is a folder.
    """
    usual = asdict(FeedbackConfig())
    own_file = earlier.get("source") in get_args(PublicSet) and Path(path).expanduser().is_file()
    given = dict(given)
    columns, tldr = given.pop("columns", {}), given.pop("tldr", {})
    same = given.get("source", "pairs" if own_file else earlier.get("source")) == earlier.get("source")
    found = {name: earlier.get(name, usual[name]) if same else usual[name] for name in HOW_A_LOG_IS_READ}
    found["columns"] = {name: column for name, column in found["columns"].items() if name not in columns}
    taken = [f"data.{name} {value!r}" for name, value in found.items() if value != usual[name] and name not in given]
    found |= {"columns": found["columns"] | columns, "tldr": found["tldr"] | tldr}
    return built(FeedbackConfig, {**found, **given, "path": path}, "data"), taken
