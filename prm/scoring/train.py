"""`prm.train`: train a reward model from Python, on a log in memory or in a file, and get the run back."""

from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from prm.checks import built, check_tree
from prm.config import TrainConfig
from prm.data.sources.in_memory import rows_in_memory
from prm.io.run_files import read_json
from prm.io.yaml_settings import merged, read_yaml
from prm.scoring.scorer import Scorer
from prm.training import run as training


@dataclass(frozen=True)
class TrainingRun:
    """A finished training run.

    Args:
        folder: the run folder, which every command takes.
    """

    folder: Path

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds: the chosen settings with their log loss, or the history of training."""
        metrics: dict[str, Any] = read_json(self.folder / "metrics.json", dict[str, Any])
        return metrics

    def scorer(self, device: str | torch.device | None = None) -> Scorer:
        """Load the trained model; raises as `Scorer.from_pretrained` does."""
        return Scorer.from_pretrained(self.folder, device=device)


def train(log: Any, /, config: TrainConfig | str | Path | None = None, **settings: Any) -> TrainingRun:
    """Train a reward model, as `prm train` does; the same call resumes a killed run.

    Args:
        log: a path, a list of `Comparison`s or of dicts, a `datasets.Dataset`, or a pandas `DataFrame`.
        config: settings to start from: a `TrainConfig`, or the path of a YAML; the defaults if not given.
        settings: settings by name, which override `config`. A group is a dict or a dataclass, as in
            `users={"kind": "bayes"}`.

    Raises `PrmError` for an unknown or wrong setting, `DataError` for a bad row, and `PrmError` if the output folder
    exists and `overwrite` is false.
    """
    tree = asdict(config) if isinstance(config, TrainConfig) else read_yaml(TrainConfig, config) if config else {}
    changes = {name: asdict(value) if _is_group(value) else value for name, value in settings.items()}
    path, rows = (str(log), None) if isinstance(log, str | PathLike) else rows_in_memory(log)
    check_tree(TrainConfig, changes)
    changes["data"] = changes.get("data", {}) | {"path": path}
    return TrainingRun(training.train(built(TrainConfig, merged(TrainConfig, tree, changes)), rows))


def _is_group(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)
