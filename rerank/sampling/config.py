"""Sampling settings. No torch, so that a command line can parse them at once."""

from dataclasses import dataclass
from typing import Annotated

from prm.checks import Count, Natural, Positive, Range, Settings, require


@dataclass
class Sampling(Settings, key="sampling"):
    """Sampling settings.

    Args:
        max_new_tokens: maximum length of a response, in tokens.
        temperature: above 0; lower is greedier.
        top_p: keep the most likely tokens that together have this probability.
        seed: random seed; the same seed gives the same responses on the same machine.
        repetition_penalty: above 1, tokens that occurred before become less likely; 1 turns it off.
        no_repeat_ngram: no sequence of so many tokens occurs twice; 0 turns it off.
        min_new_tokens: minimum length of a response, in tokens.
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
        """Whether earlier tokens are penalised."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram > 0

    def check_together(self) -> None:
        """Raise `PrmError` if the minimum length is above the maximum."""
        fits = self.min_new_tokens <= self.max_new_tokens
        fault = f"must be at most sampling.max_new_tokens, {self.max_new_tokens}, got {self.min_new_tokens}"
        require(fits, "sampling.min_new_tokens", fault)
