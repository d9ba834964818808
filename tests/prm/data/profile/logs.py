"""Small logs to describe."""

from collections import Counter
from collections.abc import Sequence

from prm.data.comparison import Comparison
from prm.data.encoding import TextEncoder
from prm.data.profile import Description, describe
from prm.data.sources.collector import Feedback
from prm.models.backbones import load_tokenizer

LONG, SHORT = "a long answer indeed", "no"


def log_of(comparisons: Sequence[Comparison], **faults: object) -> Feedback:
    n = len(comparisons)
    counts = {"rows": Counter(used=n), "pairs": Counter(kept=n), "rule": "each row is one", "skipped": [], "notes": []}
    return Feedback(list(comparisons), **counts | faults)  # type: ignore[arg-type]


def described(comparisons: Sequence[Comparison]) -> Description:
    return describe(log_of(comparisons), None)


def judged(user: str, prompt: str, longer: bool = True, **more: object) -> Comparison:
    """A long answer against a short one, which differ from prompt to prompt."""
    pair = (f"{LONG} {prompt}", f"{SHORT} {prompt}")
    return Comparison(user, prompt, *(pair if longer else pair[::-1]), **more)  # type: ignore[arg-type]


def many(user: str, n: int, longer: bool = True, prompt: str = "q") -> list[Comparison]:
    return [judged(user, f"{prompt}{i}", longer) for i in range(n)]


def encoder_of(folder: str, max_length: int) -> TextEncoder:
    return TextEncoder(load_tokenizer(folder), 336, 1, "suffix", max_length)
