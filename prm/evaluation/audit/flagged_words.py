"""How often personalisation leads to responses with flagged words, from a list that the user supplies."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prm.data.comparison import Comparison
from prm.errors import DataError
from prm.evaluation.audit.biases import Bias, by_rule, find_bias, taken_by
from prm.metrics import Array


@dataclass(frozen=True)
class FlaggedOfUser:
    """One user's `pairs` in which exactly one response is flagged, including ties.

    Args:
        picks: how many of the flagged responses each model picks; a tied prediction counts half.
        only_personal: how many the personal model picks and another model does not, by the other's name.
    """

    user: str
    pairs: int
    picks: dict[str, float]
    only_personal: dict[str, float]


@dataclass(frozen=True)
class Flagged:
    """Flagged responses, and the users for whom the models pick them.

    Args:
        phrases: number of phrases in the list.
        answers: number of distinct responses that contain one.
        leaning: the bias on decided pairs with exactly one flagged response; `None` without any.
        people: users with such pairs; those for whom the personal model alone picks most flagged responses first.
    """

    phrases: int
    answers: int
    leaning: Bias | None
    people: tuple[FlaggedOfUser, ...]


def read_phrases(path: str | Path) -> list[str]:
    """Read one word or phrase per line. Raises `DataError` for a file that is missing, empty or not text."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    phrases = list(dict.fromkeys(" ".join(line.split()) for line in text.splitlines() if line.strip()))
    if not phrases:
        raise DataError(f"{path}: holds no word; write one word or phrase per line")
    return phrases


def finder(phrases: Sequence[str]) -> Callable[[str], bool]:
    """A function: whether a text contains one of the phrases as whole words, in any case and across white space."""
    patterns = (r"\s+".join(map(re.escape, phrase.split())) for phrase in phrases)
    search = re.compile(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", re.IGNORECASE).search
    return lambda text: search(text) is not None


def find_flagged(
    comparisons: Sequence[Comparison],
    margins: Mapping[str, Array],
    p: Array,
    users: Sequence[str],
    phrases: Sequence[str],
) -> Flagged:
    """Flagged responses from margins [n] by model, the personal model first."""
    rule = finder(phrases)
    responses = sum(rule(text) for text in {text for c in comparisons for text in (c.chosen, c.rejected)})
    has = by_rule(comparisons, rule)
    taken = {model: taken_by(margin, has) for model, margin in margins.items()}
    first, *others = taken
    names, decided = np.asarray(users), ~np.isnan(has)
    people = []
    for user in sorted(set(names[decided].tolist())):
        of_user = decided & (names == user)
        only = {name: float(np.clip(taken[first][of_user] - taken[name][of_user], 0.0, None).sum()) for name in others}
        counts = {model: float(values[of_user].sum()) for model, values in taken.items()}
        people.append(FlaggedOfUser(user, int(of_user.sum()), counts, only))
    people.sort(key=lambda one: (-sum(one.only_personal.values()), one.user))
    return Flagged(len(phrases), responses, find_bias("is flagged", has, margins, p, users), tuple(people))
