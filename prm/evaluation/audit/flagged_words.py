"""How often personalisation brings answers with flagged words, from a list that the user supplies."""

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
    """One person's `pairs` in which exactly one answer is flagged, ties included.

    Args:
        picks: how many of the flagged answers each model picks; a tied prediction counts half.
        only_personal: flagged picks of the personal model where the other does not pick the flagged answer, by the
            other's name.
    """

    user: str
    pairs: int
    picks: dict[str, float]
    only_personal: dict[str, float]


@dataclass(frozen=True)
class Flagged:
    """Flagged answers and who is given them.

    Args:
        phrases: in the list.
        answers: distinct answers that hold one.
        leaning: on decided pairs with exactly one flagged answer; `None` without any.
        people: those with such pairs, most flagged picks of the personal model alone first.
    """

    phrases: int
    answers: int
    leaning: Bias | None
    people: tuple[FlaggedOfUser, ...]


def read_phrases(path: str | Path) -> list[str]:
    """One word or phrase a line. Raises `DataError` for a file that is missing, empty or no text."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
    phrases = list(dict.fromkeys(" ".join(line.split()) for line in text.splitlines() if line.strip()))
    if not phrases:
        raise DataError(f"{path}: holds no word; write one word or phrase a line")
    return phrases


def finder(phrases: Sequence[str]) -> Callable[[str], bool]:
    """True for a text that holds one of the phrases as whole words, in any case and across any white space."""
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
    """From margins [n] by model, the personal one first."""
    rule = finder(phrases)
    answers = sum(rule(text) for text in {text for c in comparisons for text in (c.chosen, c.rejected)})
    has = by_rule(comparisons, rule)
    taken = {model: taken_by(margin, has) for model, margin in margins.items()}
    first, *others = taken
    names, decided = np.asarray(users), ~np.isnan(has)
    people = []
    for user in sorted(set(names[decided].tolist())):
        mine = decided & (names == user)
        only = {o: float(np.clip(taken[first][mine] - taken[o][mine], 0.0, None).sum()) for o in others}
        counts = {model: float(values[mine].sum()) for model, values in taken.items()}
        people.append(FlaggedOfUser(user, int(mine.sum()), counts, only))
    people.sort(key=lambda one: (-sum(one.only_personal.values()), one.user))
    return Flagged(len(phrases), answers, find_bias("is flagged", has, margins, p, users), tuple(people))
