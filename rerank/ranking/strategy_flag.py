"""Parse the strategy flag. No torch, so that a command line can parse it at once."""

from dataclasses import dataclass

from prm.errors import PrmError, meant

# name: (meaning of its parameter, description, name of the ranked value in files)
STRATEGIES = {
    "best": ("", "the highest reward", ""),
    "soft": ("temperature in logits", "drawn with odds of e^(reward / T); T near 0 is greedy", "probability"),
    "regularised": (
        "weight",
        "the reward plus WEIGHT times the generator's log-probability of the response",
        "regularised",
    ),
    "pessimistic": (
        "deviations",
        "the reward minus so many posterior standard deviations (empirical Bayes)",
        "lower_bound",
    ),
    "cautious": (
        "deviations",
        "the generic pick unless the user's gain is so many posterior deviations above 0 (empirical Bayes)",
        "sure_gain",
    ),
}


@dataclass(frozen=True)
class Strategy:
    """A strategy and its parameter: 0 for `best`, which has none."""

    name: str = "best"
    parameter: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Strategy":
        """Parse `best`, or a strategy with its parameter: `soft:0.5`. Raises `PrmError` naming the strategy."""
        name, colon, number = text.partition(":")
        if name not in STRATEGIES:
            raise PrmError(f"strategy {name!r} is not known{meant(name, STRATEGIES) or f' of {[*STRATEGIES]}'}")
        parameter = STRATEGIES[name][0]
        if bool(parameter) != bool(colon):
            raise PrmError(
                f"strategy {name!r}: "
                + (f"give its {parameter}, as in {name}:1" if parameter else "it takes no number")
            )
        try:
            value = float(number) if colon else 0.0
        except ValueError:
            raise PrmError(f"strategy {text!r}: the {parameter} must be a number, got {number!r}") from None
        if not 0.0 <= value < float("inf") or (name == "soft" and value == 0.0):
            bound = "above" if name == "soft" else "at least"
            raise PrmError(f"strategy {text!r}: the {parameter} must be a number {bound} 0")
        return cls(name, value)

    @property
    def score_name(self) -> str:
        """Name of the value that candidates are ranked by; empty if it is the reward."""
        return STRATEGIES[self.name][2]


def help_text() -> str:
    """Describe all strategies for `--help`."""
    entries = [
        f"{name}{':' + parameter.split()[0].upper() if parameter else ''}, {description}"
        for name, (parameter, description, _) in STRATEGIES.items()
    ]
    return "; ".join(entries)
