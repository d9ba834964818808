"""Personalised reward models: reward models that know who is judging."""

import os
import sys

if "torch" not in sys.modules:
    # OpenMP threads that spin while they wait take the core of the thread they wait for, wherever other work runs
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
}  # torch and trl take seconds to import; most commands wait in vain


def __getattr__(name: str) -> Any:
    if name in _SLOW:
        return getattr(import_module(_SLOW[name]), name)
    raise AttributeError(f"module 'prm' has no attribute {name!r}")
