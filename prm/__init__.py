"""Personalised reward models: reward models that know who is judging."""

import os
import sys

if "torch" not in sys.modules:
    # OpenMP threads that spin while they wait take the core of the thread they wait for, wherever other work runs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prm.comparison import Comparison
from prm.config import FeedbackConfig, TrainConfig
from prm.errors import PrmError
from prm.sources import read_feedback

if TYPE_CHECKING:
    from prm.run import train
    from prm.scorer import Scorer

__all__ = ["Comparison", "FeedbackConfig", "PrmError", "Scorer", "TrainConfig", "read_feedback", "train"]

_SLOW = {"Scorer": "prm.scorer", "train": "prm.run"}  # torch and trl take seconds to import; most commands wait in vain


def __getattr__(name: str) -> Any:
    if name in _SLOW:
        return getattr(import_module(_SLOW[name]), name)
    raise AttributeError(f"module 'prm' has no attribute {name!r}")
