"""Personalised reward models: reward models with a user model."""

import os
import sys

if "torch" not in sys.modules:
    # if other work shares the machine, OpenMP threads that spin while waiting take cores from the thread they wait for
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from typing import TYPE_CHECKING

from prm.io.lazy import on_first_use

if TYPE_CHECKING:
    from prm.config import FeedbackConfig, TrainConfig
    from prm.data.comparison import Comparison
    from prm.data.sources import read_feedback
    from prm.errors import PrmError
    from prm.io.environment import __version__ as __version__
    from prm.scoring.scorer import Scorer
    from prm.scoring.train_from_python import TrainingRun, train
    from prm.training.personalized_model import PersonalizedRewardModel
    from prm.training.trainers.arguments import PersonalizedRewardConfig
    from prm.training.trainers.reward_trainer import PersonalizedRewardTrainer

__all__ = [
    "Comparison",
    "FeedbackConfig",
    "PersonalizedRewardConfig",
    "PersonalizedRewardModel",
    "PersonalizedRewardTrainer",
    "PrmError",
    "Scorer",
    "TrainConfig",
    "TrainingRun",
    "read_feedback",
    "train",
]

_MODULES = {
    "Comparison": "prm.data.comparison",
    "FeedbackConfig": "prm.config",
    "PersonalizedRewardConfig": "prm.training.trainers.arguments",
    "PersonalizedRewardModel": "prm.training.personalized_model",
    "PersonalizedRewardTrainer": "prm.training.trainers.reward_trainer",
    "PrmError": "prm.errors",
    "Scorer": "prm.scoring.scorer",
    "TrainConfig": "prm.config",
    "TrainingRun": "prm.scoring.train_from_python",
    "__version__": "prm.io.environment",
    "read_feedback": "prm.data.sources",
    "train": "prm.scoring.train_from_python",
}  # imported on first use: some bring in torch or scipy, which take seconds

__getattr__, __dir__ = on_first_use(__name__, _MODULES)
