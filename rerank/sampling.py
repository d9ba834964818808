"""How answers are drawn. No torch, so that a command line can parse it at once."""

from dataclasses import dataclass

from prm.errors import PrmError


@dataclass
class Sampling:
    """How answers are drawn.

    Args:
        max_new_tokens: longest answer, in tokens.
        temperature: above 0; lower is more cautious.
        top_p: keep the likeliest tokens that together have this probability.
        seed: of the draw; the same seed gives the same answers on the same machine.
    """

    max_new_tokens: int = 160
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0

    def check(self) -> None:
        """Raise `PrmError` naming the setting that makes no sense."""
        if self.max_new_tokens < 1:
            raise PrmError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0.0 < self.temperature < float("inf"):
            raise PrmError(f"temperature must be a number greater than 0, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise PrmError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not 0 <= self.seed < 2**63:
            raise PrmError(f"seed must lie in [0, 2^63), got {self.seed}")
