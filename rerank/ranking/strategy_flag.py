"""Which way to choose among candidates, as a flag says it. No torch, so that a command line can parse it at once."""

from dataclasses import dataclass

from prm.errors import PrmError, closest

# name: (what its number is, what it is for, how the ranked value is called in files)
STRATEGIES = {
    "best": ("", "the highest reward", ""),
    "soft": ("temperature in logits", "drawn with odds of e^(reward / T), the closer to 0 the greedier", "probability"),
    "regularised": (
        "weight",
        "the reward plus so many times the generator's log-probability of the answer",
        "regularised",
    ),
    "pessimistic": ("deviations", "the reward less so many posterior deviations (empirical Bayes)", "lower_bound"),
    "cautious": (
        "deviations",
        "everybody's pick unless the person's gain is so many posterior deviations above 0 (empirical Bayes)",
        "sure_gain",
    ),
}


@dataclass(frozen=True)
class Strategy:
    """A way to choose, and its number: 0 for `best`, which has none."""

    name: str = "best"
    number: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Strategy":
        """`best`, or a way with its number: `soft:0.5`. Raises `PrmError` naming the flag and the fault."""
        name, colon, number = text.partition(":")
        if name not in STRATEGIES:
            near = closest(name, list(STRATEGIES))
            raise PrmError(
                f"--strategy: unknown strategy {name!r}"
                + (f"; did you mean {near!r}?" if near else f" of {list(STRATEGIES)}")
            )
        what = STRATEGIES[name][0]
        if bool(what) != bool(colon):
            raise PrmError(
                f"--strategy {name}: " + (f"give its {what}, as in {name}:1" if what else "it takes no number")
            )
        try:
            value = float(number) if colon else 0.0
        except ValueError:
            raise PrmError(f"--strategy {text}: the {what} must be a number, got {number!r}") from None
        if not 0.0 <= value < float("inf") or (name == "soft" and value == 0.0):
            least = "above" if name == "soft" else "at least"
            raise PrmError(f"--strategy {text}: the {what} must be a number {least} 0")
        return cls(name, value)

    @property
    def shown(self) -> str:
        """What the number that candidates are ranked by is called; empty where it is the reward."""
        return STRATEGIES[self.name][2]


def help_text() -> str:
    """All ways in words."""
    known = [
        f"{name}{':' + what.split()[0].upper() if what else ''}, {does}" for name, (what, does, _) in STRATEGIES.items()
    ]
    return "; ".join(known)
