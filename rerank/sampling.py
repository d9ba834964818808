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
        repetition_penalty: above 1, what was said before becomes less likely; 1 leaves it alone.
        no_repeat_ngram: no run of so many tokens comes twice; 0 allows it.
        min_new_tokens: no answer ends before so many tokens.
    """

    max_new_tokens: int = 160
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    min_new_tokens: int = 0

    @property
    def penalises(self) -> bool:
        """Whether what was said before changes what is likely now."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0

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
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise PrmError(f"repetition_penalty must be a number greater than 0, got {self.repetition_penalty}")
        if self.no_repeat_ngram < 0:
            raise PrmError(f"no_repeat_ngram must not be negative, got {self.no_repeat_ngram}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise PrmError(f"min_new_tokens must lie in [0, max_new_tokens], got {self.min_new_tokens}")
