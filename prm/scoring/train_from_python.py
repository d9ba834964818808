"""`prm.train`: train a reward model from Python, on a log in memory or in a file, and get the run back."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from prm.checkpoint.checkpoint import read_users
from prm.checkpoint.config_file import read_config
from prm.checkpoint.training_results import HeldOut, read_results
from prm.checks import built, check_tree
from prm.config import TrainConfig
from prm.data.sources.in_memory import rows_of
from prm.errors import PrmError, shown
from prm.io.run_files import read_json
from prm.io.yaml_settings import merged, read_yaml
from prm.scoring.scorer import Scorer
from prm.training import run as training


@dataclass(frozen=True, repr=False)
class TrainingRun:
    """A finished training run.

    Args:
        folder: the run folder, which every command takes.
    """

    folder: Path

    def __repr__(self) -> str:
        """Say where the run is and what was trained, as far as its files are still there."""
        try:
            config, users = read_config(self.folder), read_users(self.folder)
        except PrmError:
            return f"TrainingRun({str(self.folder)!r})"
        settings = config.settings
        form = settings.reward.form if settings.reward is not None else config.kind
        kind = f"users={settings.users.kind!r}, num_users={len(users)}, backbone={settings.backbone.name!r}"
        with suppress(PrmError):
            kind += "".join(f", {name}=<{result}>" for name, result in self.summary.items())
        return f"TrainingRun({str(self.folder)!r}, {form!r}, {kind})"

    @cached_property
    def summary(self) -> Mapping[str, HeldOut]:
        """Accuracy and log loss on comparisons that training held out: of `personal`, the trained model, and `uniform`.

        Linear heads are measured by cross-validation, and so is the tuned uniform model; other models on the validation
        part, without a uniform one. `prm evaluate` measures on the held-out test part, with baselines and intervals.
        """
        return read_results(self.folder).by_model

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """All that `metrics.json` holds: every setting tried and the chosen ones, or the history of training."""
        return read_json(self.folder / "metrics.json", dict[str, object])

    def scorer(self, device: str | torch.device | None = None) -> Scorer:
        """Load the trained model; raises as `Scorer.from_pretrained` does."""
        return Scorer.from_pretrained(self.folder, device=device)


def train(log: Any, /, config: TrainConfig | str | Path | None = None, **settings: Any) -> TrainingRun:
    """Train a reward model, as `prm train` does; the same call resumes a killed run.

    Prints what became of the rows, and progress, on stderr; where logging is set up, the logger `prm` has these lines.

    Args:
        log: a path, a list of `Comparison` or of dicts, a `datasets.Dataset`, or a pandas `DataFrame`.
        config: settings to start from: a `TrainConfig`, or the path of a YAML; the defaults if not given.
        settings: settings by name, which override `config`. A group is a dict or a dataclass, as in
            `users={"kind": "bayes"}`.
            `trainer={"callbacks": [...]}` also takes callbacks of transformers, which no file can name.

    Raises `PrmError` for an unknown or wrong setting, `DataError` for a bad row, and `PrmError` if the output folder
    exists and `overwrite` is false.
    """
    tree = asdict(config) if isinstance(config, TrainConfig) else read_yaml(TrainConfig, config) if config else {}
    changes = {name: asdict(value) if _is_group(value) else value for name, value in settings.items()}
    path, rows = rows_of(log)
    callbacks = _taken_from(changes)
    check_tree(TrainConfig, changes)
    changes["data"] = changes.get("data", {}) | {"path": path}
    return TrainingRun(training.train(built(TrainConfig, merged(TrainConfig, tree, changes)), rows, callbacks))


def _taken_from(changes: dict[str, Any]) -> list[TrainerCallback]:
    """The callbacks among the settings, which are taken out. Raises `PrmError` for what is no list."""
    trainer = changes.get("trainer")
    if not isinstance(trainer, dict) or "callbacks" not in trainer:
        return []
    changes["trainer"] = {name: value for name, value in trainer.items() if name != "callbacks"}
    if not isinstance(trainer["callbacks"], list | tuple):
        raise PrmError(f"config key 'trainer.callbacks' must be a list, got {shown(trainer['callbacks'])}")
    return list(trainer["callbacks"])


def _is_group(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)
