"""Personalised reward models: reward models with a user model."""

import os
import sys

if "torch" not in sys.modules:
    # if other work shares the machine, OpenMP threads that spin while waiting take cores from the thread they wait for
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prm.config import FeedbackConfig, TrainConfig
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.errors import PrmError

if TYPE_CHECKING:
    from prm.scoring.scorer import Scorer
    from prm.training.run import train

__all__ = ["Comparison", "FeedbackConfig", "PrmError", "Scorer", "TrainConfig", "read_feedback", "train"]

_SLOW = {
    "Scorer": "prm.scoring.scorer",
    "train": "prm.training.run",
}  # imported on first use: torch and trl take seconds, and most commands do not need them


def __getattr__(name: str) -> Any:
    if name in _SLOW:
        return getattr(import_module(_SLOW[name]), name)
    raise AttributeError(f"module 'prm' has no attribute {name!r}")
