"""The settings with which `prm train` trains a model of a comparison."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import yaml

from prm.config import Kernel, RewardModelConfig, TrainConfig, UserConfig
from prm.evaluation.compare.config import CompareModelsConfig, Name

T = TypeVar("T")


def recipe(
    config: CompareModelsConfig, name: Name, settings: Sequence[Mapping[str, Any]], has_user_text: bool = False
) -> str:
    """A YAML for `prm train`, with what differs from its defaults; the run folder is OUTPUT/run.

    Args:
        settings: those that were chosen in each part; where they differ, the most frequent.
        has_user_text: the log has a `user_text`, which the comparison did not read and training leaves unread.
    """
    chosen = _of(name, replace(config.train_config(), output_dir=f"{config.output_dir}/run"), settings)
    if has_user_text:
        chosen = replace(chosen, users=replace(chosen.users, text_dropout=1.0))
    chosen.check()
    return yaml.safe_dump(_differing(chosen.to_dict(), TrainConfig().to_dict()), sort_keys=False, allow_unicode=True)


def _of(name: Name, common: TrainConfig, settings: Sequence[Mapping[str, Any]]) -> TrainConfig:
    kernels: dict[Name, list[Kernel]] = {"uniform_kernel": ["rbf"], "stack": ["linear", "rbf"]}
    search = replace(common.search, kernels=kernels.get(name, ["linear"]), folds=TrainConfig().search.folds)
    if name in ("uniform", "uniform_kernel"):
        search = replace(search, user_l2=[1.0])  # one value: the uniform model then tries those of l2 alone
        return replace(common, users=UserConfig("uniform"), search=search)
    search = replace(search, user_l2=_values(settings, "user_l2"))
    if name == "bayes":
        return replace(common, users=UserConfig("bayes"), search=replace(search, user_l2=[1.0]))
    if name == "stack":
        return replace(common, users=UserConfig("stack"), search=search)
    users = {
        "individual": lambda: UserConfig("individual"),
        "cluster": lambda: UserConfig("cluster", clusters=_most_frequent(settings, "clusters")),
        "low_rank": lambda: UserConfig("low_rank", rank=_most_frequent(settings, "rank")),
    }[name]()
    reward = RewardModelConfig(features=list(_most_frequent(settings, "features")))
    search = replace(search, l2=_values(settings, "l2"), layers=[])
    return replace(common, users=users, reward=reward, search=search, alpha=_most_frequent(settings, "alpha"))


def _values(settings: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return sorted({float(f"{one[key]:.3g}") for one in settings})


def _most_frequent(settings: Sequence[Mapping[str, Any]], key: str) -> Any:
    values = [tuple(one[key]) if isinstance(one[key], list) else one[key] for one in settings]
    return Counter(values).most_common(1)[0][0]


def _differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from the defaults, group by group."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(defaults[key], dict) and defaults[key]:
            if inner := _differing(value, defaults[key]):
                found[key] = inner
        elif value != defaults[key]:
            found[key] = value
    return found
