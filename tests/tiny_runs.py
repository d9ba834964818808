"""Minimal runs of every kind of model and policy, made by their commands."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from policy.config import DpoConfig, OnlineConfig, Ppo, PpoConfig, SftConfig
from prm.config import (
    BackboneConfig,
    DataConfig,
    OptimConfig,
    RewardModelConfig,
    RunConfig,
    SearchConfig,
    TrainConfig,
    UserConfig,
)
from prm.data.comparison import Comparison
from tests.planted import opposed_people

OPTIM = OptimConfig(epochs=1.0, batch_size=8, micro_batch_size=8, eval_steps=1, user_lr=0.1, lora_lr=0.01, head_lr=0.1)
SEARCH = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0], layers=[2], poolings=["mean"])


def small_log(prompts: int = 8) -> list[Comparison]:
    """Two users who disagree."""
    return opposed_people(prompts, 0, people=2)


def config_of(kind: str, backbone: str, folder: Path, **changes: Any) -> RunConfig:
    """The settings of a run in `folder`/run on `folder`/log.jsonl.

    `linear`, `bayes` and `soft` are reward models; `sft`, `dpo`, `ppo` and `online` are policies.
    """
    common: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "data": DataConfig(
            path=str(folder / "log.jsonl"),
            test_fraction=0.25,
            validation_fraction=0.25,
            on_bad_row="skip",
            on_artefact="warn",
        ),
        "backbone": BackboneConfig(backbone, dtype="float32", max_length=120),
        "optim": OPTIM if kind in ("linear", "bayes", "soft") else replace(OPTIM, head_lr=OptimConfig().head_lr),
    }
    soft_users: dict[str, Any] = {"users": UserConfig(num_virtual_tokens=2)}
    configs: dict[str, Callable[[], Any]] = {
        "linear": lambda: TrainConfig(**common, search=SEARCH),
        "bayes": lambda: TrainConfig(**common, search=SEARCH, users=UserConfig("bayes", rank=4)),
        "soft": lambda: TrainConfig(
            **common, **soft_users, train="lora", reward=RewardModelConfig("soft_prompt", "prefix")
        ),
        "sft": lambda: SftConfig(**common | {"optim": replace(common["optim"], user_lr=OptimConfig().user_lr)}),
        "dpo": lambda: DpoConfig(**common, **soft_users),
        "ppo": lambda: PpoConfig(
            **common, **soft_users, ppo=Ppo(max_steps=2, rollout_batch_size=8, max_new_tokens=3, num_scale_samples=4)
        ),
        "online": lambda: OnlineConfig(
            **common,
            **soft_users,
            reward=str(folder / "reward"),
            max_new_tokens=3,
            num_eval_samples=4,
            num_generations=2,
        ),
    }
    return replace(configs[kind](), **changes)


def train_any(kind: str, config: Any) -> Path:
    """Train the run of a config by the function of its command."""
    if kind in ("linear", "bayes", "soft"):
        from prm.training.run import train

        return train(config)
    if kind == "sft":
        from policy.sft import train_sft

        return train_sft(config)
    if kind == "dpo":
        from policy.dpo import train_dpo

        return train_dpo(config)
    if kind == "ppo":
        from policy.ppo.train import train_ppo

        return train_ppo(config, lengths)
    from policy.online.train import train_online

    return train_online(config)


def lengths(
    prompts: Sequence[Any], responses: Sequence[str], users: Sequence[Any], texts: Sequence[str]
) -> list[float]:
    """A reward for PPO: the number of characters."""
    return [float(len(response)) for response in responses]


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of each file by its relative path, without times and absolute paths."""
    contents: dict[str, bytes] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if "logs" in path.parts or path.name == "seconds.json":
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
        elif path.suffix == ".jsonl":
            content = b"\n".join(json.dumps(_timeless(json.loads(line))).encode() for line in content.splitlines())
        contents[name] = content
    return contents


def _timeless(value: Any) -> Any:
    volatile = (
        "seconds",
        "runtime",
        "per_second",
        "cost",
        "written",
        "read_at",
        "output_dir",
        "feature_stores",
        "path",
        "name",
    )
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not k.endswith(volatile) and not k.startswith("seconds")}
    return [_timeless(v) for v in value] if isinstance(value, list) else value
