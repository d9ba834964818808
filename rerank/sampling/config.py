"""How answers are drawn. No torch, so that a command line can parse it at once."""

from dataclasses import dataclass
from typing import Annotated

from prm.checks import Count, Natural, Positive, Range, Settings, require


@dataclass
class Sampling(Settings, key="sampling"):
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

    max_new_tokens: Count = 160
    temperature: Positive = 0.8
    top_p: Annotated[float, Range(0, 1, above=True)] = 0.95
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    repetition_penalty: Positive = 1.0
    no_repeat_ngram: Natural = 0
    min_new_tokens: Natural = 0

    @property
    def penalises(self) -> bool:
        """Whether what was said before changes what is likely now."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0

    def check_together(self) -> None:
        """Raise `PrmError` for a least length above the greatest."""
        fits = self.min_new_tokens <= self.max_new_tokens
        fault = f"must be at most sampling.max_new_tokens, {self.max_new_tokens}, got {self.min_new_tokens}"
        require(fits, "sampling.min_new_tokens", fault)
