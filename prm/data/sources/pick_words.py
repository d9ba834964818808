"""Reads which of several responses was chosen, in the words that logs use for it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from prm.config import FeedbackConfig, cell_key
from prm.data.sources.column_names import family, is_words, words_of

TIES = ("tie", "tied", "equal", "both", "neither", "none")
_MORE_TIES = (
    "ties",
    "a tie",
    "draw",
    "same",
    "about the same",
    "equally good",
    "equally bad",
    "both good",
    "both bad",
    "bothbad",
    "tie bothbad",
    "tie both bad",
    "no preference",
)
_NOUNS = (
    *("model", "assistant", "answer", "response", "option", "candidate", "output", "completion", "system", "choice"),
    *("text", "summary", "generation", "reply", "chatbot", "bot"),
)
_EXAMPLES = 2
_SAYING = {"is", "better", "best", "wins", "win", "won", "preferred"}  # "A is better", "model_b wins"
_ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class PickWords:
    """What each value means: the position of a response, or `None` for a tie.

    Args:
        positions: by the value's key.
        given: whether the settings say so, word by word; otherwise common words are read, in any spelling.
        models: columns that name the models; the name of one means its response, if no word does.
    """

    positions: Mapping[str, int | None]
    given: bool = False
    models: Sequence[str] = ()

    def knows(self, value: object) -> bool:
        """Whether the value means something."""
        return self._key(value) in self.positions

    def position(self, value: object) -> int | None:
        """Position of the response that a known value means, `None` for a tie."""
        return self.positions[self._key(value)]

    def examples(self, position: int | None) -> list[str]:
        """The first few values that mean this response, or a tie."""
        return [word for word, means in self.positions.items() if means == position][:_EXAMPLES]

    def _key(self, value: object) -> str:
        return cell_key(value) if self.given else _loose_key(value)


def words_given(config: FeedbackConfig) -> PickWords | None:
    """The words that the setting `data.values` names, if any."""
    if not config.values:
        return None
    positions: dict[str, int | None] = {}
    for name, values in config.values.items():
        position = None if name == "tie" else ord(name) - ord("a")
        positions |= {cell_key(value): position for value in (values if isinstance(values, list) else [values])}
    return PickWords(positions, given=True)


def common_words(columns: Sequence[str], values: Collection[object], models: Sequence[str] = ()) -> PickWords:
    """Common words for responses in these columns.

    Column names, letters, left and right, first and second, each also after a noun ("Answer A", "model_a"), and words
    for a tie. Numbers only if they can be counted in one way: as the columns' names count from 0, or if the log has the
    number of the last response counted from 1, and no 0.

    Args:
        values: values of the log.
        models: columns that name the models which wrote the responses, in the same order.
    """
    positions: dict[str, int | None] = dict.fromkeys((*TIES, *_MORE_TIES))
    base = _counted_from(columns, values)
    for i, column in enumerate(columns):
        names = [chr(ord("a") + i), *_ORDINALS[i : i + 1], *(("left", "right")[i : i + 1] if len(columns) == 2 else ())]
        names += [str(i + base)] if base is not None else []
        names += [f"{noun} {name}" for noun in _NOUNS for name in names]
        named = [f"{_NOUNS[0]} {names[0]}", _loose_key(column)]  # first: the examples in messages
        positions |= dict.fromkeys([*named, *names], i)
    return PickWords(positions, models=models)


def _counted_from(columns: Sequence[str], values: Collection[object]) -> int | None:
    if family(columns) == "0":
        return 0
    last_words = [key.rpartition(" ")[2] for key in map(_loose_key, values)]
    numbers = {int(word) for word in last_words if word.isascii() and word.isdigit() and len(word) < 3}
    return 1 if len(columns) in numbers and numbers <= {*range(1, len(columns) + 1)} else None


def _loose_key(value: object) -> str:
    """As `cell_key`, and without spaces, brackets and the like, case of letters within a word, "is better" at the end.

    A value with other characters (`tie?`) is what it is: what they mean is not known.
    """
    key = cell_key(value)
    if not isinstance(value, str) or key.removeprefix("-").replace(".", "").isdigit() or not is_words(value):
        return key
    words = words_of(value)
    while len(words) > 1 and words[-1] in _SAYING:
        words.pop()
    return " ".join(words) or key
