"""Picks: several responses shown, one chosen."""

from collections.abc import Sequence
from string import ascii_lowercase

from prm.config import FeedbackConfig
from prm.data.comparison import parse_prompt
from prm.data.sources.fields import Fields
from prm.data.sources.pairing import RatedPrompt, RatedResponse
from prm.data.sources.pick_words import TIES, PickWords, common_words
from prm.errors import DataError, shown

FIELDS = ("prompt", "responses", "chosen")
NEEDED = FIELDS
RULE = "the chosen response against each other one shown, at most {max_pairs}; a tie of two is one tied pair"

_DIGITS = 10  # positions have fewer digits
_LONGEST_EXAMPLE = 30  # characters of a value that the message repeats
_LETTERED = [f"response {letter}" for letter in ascii_lowercase]  # names of responses that are in a list


def parse(fields: Fields, config: FeedbackConfig, number: int, words: PickWords | None = None) -> RatedPrompt:
    """The rated responses of one row. Raises `DataError`.

    `chosen` is the text, its position from 0, its letter (a, b, ...), the name of its column if `data.columns` gathers
    several, or `tie`; or a common word for one of these (`pick_words.common_words`).

    Args:
        words: what the values of `chosen` mean, instead.
    """
    responses = fields.texts("responses")
    if len(responses) < 2:
        raise DataError(f"'responses' holds {len(responses)} response; a pick needs two or more")
    chosen_position = _chosen(fields, responses) if words is None else _chosen_by_word(fields, responses, words)
    if chosen_position is None and len(responses) > 2:
        raise DataError(f"a tie of {len(responses)} responses gives no preference: give the one that was chosen")
    common = fields.common()
    rated = [
        RatedResponse(text, float(i == chosen_position), number, fields.row.origin, common, position=i)
        for i, text in enumerate(responses)
    ]
    return RatedPrompt(
        fields.user_id(), parse_prompt(fields.conversation("prompt")), tuple(rated), ties=chosen_position is None
    )


def _chosen(fields: Fields, responses: list[str]) -> int | None:
    """Position of the chosen answer; `None` for a tie."""
    chosen = fields.get("chosen")
    columns = fields.gathered("responses") or [f"responses[{i}]" for i in range(len(responses))]
    if isinstance(chosen, str):
        word = chosen.strip().lower()
        position = _position(word)
        if chosen in responses:
            is_ambiguous = word in TIES or chosen in columns or (position is not None and position < len(columns))
            if is_ambiguous:
                fields.remark("'chosen' is the text of a response, or a position, letter or name: read as text")
            return responses.index(chosen)
        if chosen in columns:
            return _within(columns.index(chosen), columns)
        if word in TIES:
            return None
        if position is not None and (word.isalpha() or fields.row.is_text):
            return _within(position, columns)
        return _by_common_word(fields, columns)
    if isinstance(chosen, int) and not isinstance(chosen, bool):
        if str(chosen) in responses:
            fields.remark("'chosen' is a number, and may be the text of a response: read as a position, from 0")
        return _within(chosen, columns)
    return _by_common_word(fields, columns)


def _by_common_word(fields: Fields, columns: Sequence[str]) -> int | None:
    """As `_chosen`, by the words with which a log is read whose kind of feedback is not named."""
    named = fields.gathered("responses") is not None
    chosen, words = fields.get("chosen"), common_words(columns if named else _LETTERED[: len(columns)], ())
    if words.knows(chosen):
        position = words.position(chosen)
        return None if position is None else _within(position, columns)
    raise DataError(
        f"{fields.named('chosen')} must be one of the responses, its position from 0, its letter, or 'tie', got "
        f"{shown(chosen)}: say what it means with 'data.values', as in {{a: A, b: B}}"
    )


def _chosen_by_word(fields: Fields, responses: list[str], words: PickWords) -> int | None:
    """Position of the response that the value means, `None` for a tie. Raises `DataError` for an unknown value."""
    chosen = fields.get("chosen")
    columns = fields.gathered("responses") or [f"responses[{i}]" for i in range(len(responses))]
    if not words.knows(chosen):
        if isinstance(chosen, str) and chosen in responses and not words.given:
            return responses.index(chosen)
        by_model = [i for i, column in enumerate(words.models) if fields.values.get(column) == chosen]
        if len(by_model) == 1:
            return _within(by_model[0], columns)
        raise DataError(f"{fields.named('chosen')} is {shown(chosen)}, {_unknown(chosen, columns, words)}")
    meaning = words.position(chosen)
    position = None if meaning is None else _within(meaning, columns)
    is_text = isinstance(chosen, str) and chosen in responses and responses.index(chosen) != position
    if is_text and not words.given:
        meant = "a tie" if meaning is None else repr(columns[meaning])
        raise DataError(
            f"{fields.named('chosen')} is {shown(chosen)}, which may be {meant} or the response with that text: say "
            "what it means with 'data.values', as in {a: A, b: B}"
        )
    return position


def _unknown(chosen: object, columns: Sequence[str], words: PickWords) -> str:
    """Why a value has no meaning, and what to do."""
    known = [*(words.examples(i) for i in range(len(columns))), words.examples(None)]
    listed = "; ".join(", ".join(map(repr, values)) for values in known if values)
    if words.given:
        return f"which 'data.values' does not name; it names {listed}"
    say = "with 'data.values', as in"
    if isinstance(chosen, bool) or str(chosen).strip().lower() in ("true", "false"):
        return f"which may mean either response: say what it means {say} {{a: true, b: false}}"
    if str(chosen).strip().isdigit():
        return f"which may count from 0 or from 1, or be yes or no: say what it means {say} {{a: 1, b: 2}}"
    value = shown(chosen) if len(str(chosen)) <= _LONGEST_EXAMPLE else "..."
    example = f"{{a: [A, {value}], b: B}}"  # all values: only those that the settings name are read then
    return f"which is not known (known, in any spelling: {listed}): if it is one, name all choices {say} {example}"


def _position(word: str) -> int | None:
    """The position that a letter or a number means; `None` for other words."""
    if not word.isascii():
        return None
    if len(word) == 1 and word.isalpha():
        return ord(word) - ord("a")
    return int(word) if word.isdigit() and len(word) < _DIGITS else None


def _within(position: int, columns: Sequence[str]) -> int:
    """Position among the responses of the column at `position`; empty columns do not count."""
    if not 0 <= position < len(columns):
        raise DataError(f"'chosen' is position {position} (from 0), but there are {len(columns)} responses")
    if not columns[position]:
        raise DataError(f"'chosen' is position {position} (from 0), where there is no response")
    return position - columns[:position].count("")
