"""The paper's tables and figures on reward models, row by row (`prm reproduce`); `prm.experiments.run` runs them."""

from prm.experiments.claims import judge
from prm.experiments.paper_tables import EXPERIMENTS

__all__ = ["EXPERIMENTS", "judge"]
