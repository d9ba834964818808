"""The paper's tables and figures on the reward side, row by row (`prm reproduce`). `prm.reproduce.run` runs them."""

from prm.reproduce.claims import judge
from prm.reproduce.experiments import EXPERIMENTS

__all__ = ["EXPERIMENTS", "judge"]
